import { describe, expect, it } from 'vitest';
import { diameter, inWords, sizeOf } from '../src/measure';
import { drawDisc, toRuns, type Bitmap } from '../src/runs';

/** The longest distance between two set pixels, by comparing all. */
function naive(bitmap: Bitmap, columns: number, spacing: readonly [number, number]): number {
  const points = [...bitmap.keys()].filter((k) => bitmap[k]);
  let longest = 0;
  for (const a of points) {
    for (const b of points) {
      const dx = ((a % columns) - (b % columns)) * spacing[1];
      const dy = (Math.floor(a / columns) - Math.floor(b / columns)) * spacing[0];
      longest = Math.max(longest, Math.hypot(dx, dy));
    }
  }
  return longest;
}

describe('sizes', () => {
  it('have the diameter that comparing all pixels finds', () => {
    let state = 5;
    const next = (): number => (state = (state * 16807) % 2147483647) / 2147483647;
    for (let trial = 0; trial < 30; trial++) {
      const bitmap = new Uint8Array(20 * 15);
      for (let k = 0; k < 3; k++) {
        drawDisc(bitmap, 20, 20 * next(), 15 * next(), 4 * next(), 1);
      }
      // whole rows, whose runs go over their ends
      if (trial % 5 === 0) {
        bitmap.fill(1, 35, 70);
      }
      for (const spacing of [
        [1, 1],
        [0.7, 1.9],
      ] as const) {
        expect(diameter(toRuns(bitmap), 20, spacing)).toBeCloseTo(naive(bitmap, 20, spacing), 9);
      }
    }
  });

  it('are in mL and mm where the image has a spacing', () => {
    const planes = new Map([
      [3, [0, 100]],
      [4, [0, 50]],
    ]);
    const size = sizeOf(planes, { rows: 10, columns: 10, spacing_mm: [5, 2, 2] });
    expect(size).toMatchObject({ pixels: 150, planes: 2, volume_ml: 3, area_mm2: 600, diameter_plane: 3 });
    expect(size.diameter).toBeCloseTo(Math.hypot(18, 18), 9);
    expect(inWords(size, true)).toContain('3.00 mL');
  });

  it('are in pixels where it has none', () => {
    const size = sizeOf(new Map([[0, [0, 4]]]), { rows: 2, columns: 4, spacing_mm: null });
    expect(size).toMatchObject({ pixels: 4, volume_ml: null, area_mm2: null, diameter: 3 });
    expect(inWords(size, false)).not.toContain('mm');
  });
});
