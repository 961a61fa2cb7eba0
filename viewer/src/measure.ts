/**
 * Sizes of findings in units that radiologists use.
 */
import { area, type Runs } from './runs';

export interface Geometry {
  rows: number;
  columns: number;
  /** Between planes, rows and columns, in mm; null where the image does not say. */
  spacing_mm: readonly [number | null, number, number] | null;
}

export interface Size {
  pixels: number;
  planes: number;
  /** Null where the image has no spacing. */
  volume_ml: number | null;
  area_mm2: number | null;
  /** The longest distance between two pixels of one plane, and the plane; pixels where there is no spacing. */
  diameter: number;
  diameter_plane: number | null;
}

type Point = readonly [number, number];

/** Return the corners of the convex hull, counter-clockwise (Andrew's monotone chain). */
export function convexHull(points: readonly Point[]): Point[] {
  const sorted = [...points].sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  if (sorted.length < 3) {
    return sorted;
  }
  const half = (all: readonly Point[]): Point[] => {
    const hull: Point[] = [];
    for (const point of all) {
      for (;;) {
        const a = hull.at(-2);
        const b = hull.at(-1);
        if (!a || !b || (b[0] - a[0]) * (point[1] - a[1]) - (b[1] - a[1]) * (point[0] - a[0]) > 0) {
          break;
        }
        hull.pop();
      }
      hull.push(point);
    }
    hull.pop();
    return hull;
  };
  return [...half(sorted), ...half(sorted.reverse())];
}

/** Return the longest distance between two pixel centres of a plane's mask, with the spacing of rows and columns. */
export function diameter(runs: Runs, columns: number, spacing: readonly [number, number]): number {
  const ends: Point[] = [];
  for (let k = 0; k < runs.length; k += 2) {
    const start = runs[k] ?? 0;
    const last = start + (runs[k + 1] ?? 1) - 1;
    // a run may go over the ends of rows
    for (let row = Math.floor(start / columns); row <= Math.floor(last / columns); row++) {
      const left = Math.max(start, row * columns) - row * columns;
      const right = Math.min(last, (row + 1) * columns - 1) - row * columns;
      ends.push([left * spacing[1], row * spacing[0]], [right * spacing[1], row * spacing[0]]);
    }
  }
  const hull = convexHull(ends);
  let longest = 0;
  for (const [index, a] of hull.entries()) {
    for (const b of hull.slice(index + 1)) {
      longest = Math.max(longest, Math.hypot(a[0] - b[0], a[1] - b[1]));
    }
  }
  return longest;
}

export function sizeOf(planes: ReadonlyMap<number, Runs>, geometry: Geometry): Size {
  const spacing = geometry.spacing_mm;
  let pixels = 0;
  let used = 0;
  let longest = 0;
  let where: number | null = null;
  for (const [plane, runs] of planes) {
    const here = area(runs);
    if (!here) {
      continue;
    }
    used += 1;
    pixels += here;
    const across = diameter(runs, geometry.columns, spacing ? [spacing[1], spacing[2]] : [1, 1]);
    if (where === null || across > longest) {
      longest = across;
      where = plane;
    }
  }
  return {
    pixels,
    planes: used,
    volume_ml: spacing?.[0] ? (pixels * spacing[0] * spacing[1] * spacing[2]) / 1000 : null,
    area_mm2: spacing ? pixels * spacing[1] * spacing[2] : null,
    diameter: longest,
    diameter_plane: where,
  };
}

const figures = (value: number): string =>
  value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);

/** Return a size in words: volume for volumes, area for single planes, pixels where the image has no spacing. */
export function inWords(size: Size, isVolume: boolean): string {
  if (!size.pixels) {
    return 'empty';
  }
  if (size.area_mm2 === null) {
    return `${size.pixels} pixels, ${figures(size.diameter)} pixels across`;
  }
  const amount =
    isVolume && size.volume_ml !== null ? `${figures(size.volume_ml)} mL` : `${figures(size.area_mm2)} mm²`;
  return `${amount}, ${figures(size.diameter)} mm across`;
}
