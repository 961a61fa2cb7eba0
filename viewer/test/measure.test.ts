import { describe, expect, it } from 'vitest';
import { inWords, measuredAtLength, measuredInWords, sizeOf, type Measured } from '../src/measure';

describe('sizes', () => {
  it('are in mL and mm where the image has a spacing', () => {
    const planes = new Map([
      [3, [0, 100]],
      [4, [0, 50]],
    ]);
    const size = sizeOf(planes, { spacing_mm: [5, 2, 2] });
    expect(size).toEqual({ pixels: 150, planes: 2, volume_ml: 3, area_mm2: 600 });
    expect(inWords(size, true)).toBe('3.00 mL');
    expect(inWords(size, false)).toBe('600 mm\u00b2');
  });

  it('are in pixels where it has none', () => {
    const size = sizeOf(new Map([[0, [0, 4]]]), { spacing_mm: null });
    expect(size).toEqual({ pixels: 4, planes: 1, volume_ml: null, area_mm2: null });
    expect(inWords(size, false)).toBe('4 pixels');
  });
});

describe('measurements', () => {
  const axis = (mm: number | null, pixels: number) => ({
    ...{ plane: 2, length_mm: mm, length_pixels: pixels },
    ...{ start: [0, 0] as [number, number], end: [0, pixels] as [number, number] },
  });
  const measured: Measured = {
    ...{ name: 'lungs', n_voxels: 150, n_components: 2, long_axis: axis(45.21, 30), short_axis: axis(9.876, 6) },
    values: { mean: -780.4, sd: 110.2, minimum: -1000, maximum: -12, unit: 'HU' },
  };

  it('are in mm and HU where these are known', () => {
    expect(measuredInWords(measured)).toBe('45.2 \u00d7 9.88 mm \u00b7 \u2212780 \u00b1 110 HU \u00b7 2 parts');
    expect(measuredAtLength(measured)).toContain('plane 3');
  });

  it('are in pixels and stored values where they are not, and leave out the values of colours', () => {
    const bare = { ...measured, n_components: 1, long_axis: axis(null, 30), short_axis: axis(null, 6) };
    const values = { mean: 12, sd: 3, minimum: 0, maximum: 20, unit: 'stored values' };
    expect(measuredInWords({ ...bare, values })).toBe('30.0 \u00d7 6.00 pixels \u00b7 12.0 \u00b1 3.00 \u00b7 1 part');
    expect(measuredInWords({ ...bare, values: null })).toBe('30.0 \u00d7 6.00 pixels \u00b7 1 part');
    expect(measuredInWords({ ...bare, long_axis: null, short_axis: null, values: null })).toBe('');
  });
});
