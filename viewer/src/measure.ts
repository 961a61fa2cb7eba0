/**
 * Sizes and measurements of findings in units that radiologists use.
 */
import { area, type Runs } from './runs';

export interface Geometry {
  /** Between planes, rows and columns, in mm; null where the image does not say. */
  spacing_mm: readonly [number | null, number, number] | null;
}

/** What can be counted here at once, while the server has not measured yet. */
export interface Size {
  pixels: number;
  planes: number;
  /** Null where the image has no spacing. */
  volume_ml: number | null;
  area_mm2: number | null;
}

/** A straight line across a finding; its ends are x and y in pixels of the plane's frame. */
export interface Axis {
  plane: number;
  /** Null where the image has no spacing. */
  length_mm: number | null;
  length_pixels: number;
  start: [number, number];
  end: [number, number];
}

/** What the server has measured of a finding. */
export interface Measured {
  name: string;
  n_voxels: number;
  n_components: number;
  long_axis: Axis | null;
  short_axis: Axis | null;
  /** Null of colours. */
  values: { mean: number; sd: number; minimum: number; maximum: number; unit: string } | null;
}

export function sizeOf(planes: ReadonlyMap<number, Runs>, { spacing_mm: spacing }: Geometry): Size {
  const areas = [...planes.values()].map(area);
  const pixels = areas.reduce((sum, each) => sum + each, 0);
  return {
    pixels,
    planes: areas.filter((each) => each > 0).length,
    volume_ml: spacing?.[0] ? (pixels * spacing[0] * spacing[1] * spacing[2]) / 1000 : null,
    area_mm2: spacing ? pixels * spacing[1] * spacing[2] : null,
  };
}

function figures(value: number): string {
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return value.toFixed(digits).replace('-', '\u2212');
}

/** Return a size in words: volume for volumes, area for single planes, pixels where the image has no spacing. */
export function inWords(size: Size, isVolume: boolean): string {
  if (!size.pixels) {
    return 'empty';
  }
  if (size.area_mm2 === null) {
    return `${size.pixels} pixels`;
  }
  return isVolume && size.volume_ml !== null ? `${figures(size.volume_ml)} mL` : `${figures(size.area_mm2)} mm\u00b2`;
}

/** Return the axes, the values and the number of parts in words; empty for an empty finding. */
export function measuredInWords({ long_axis: long, short_axis: short, values, n_components: parts }: Measured): string {
  if (!long || !short) {
    return '';
  }
  const lengths =
    long.length_mm !== null && short.length_mm !== null
      ? `${figures(long.length_mm)} \u00d7 ${figures(short.length_mm)} mm`
      : `${figures(long.length_pixels)} \u00d7 ${figures(short.length_pixels)} pixels`;
  const unit = values?.unit === 'HU' ? ' HU' : '';
  const within = values ? `${figures(values.mean)} \u00b1 ${figures(values.sd)}${unit}` : '';
  return [lengths, within, parts === 1 ? '1 part' : `${parts} parts`].filter(Boolean).join(' \u00b7 ');
}

/** Return what the figures of `measuredInWords` are, for who does not know. */
export function measuredAtLength({ long_axis: long, values }: Measured): string {
  const plane = long ? ` on plane ${long.plane + 1}` : '';
  const within = values
    ? `; mean \u00b1 standard deviation${values.unit === 'HU' ? '' : ' of the stored values'}, from ${figures(values.minimum)} to ${figures(values.maximum)}`
    : '';
  return `Longest diameter${plane} \u00d7 the longest one across it${within}; connected parts`;
}
