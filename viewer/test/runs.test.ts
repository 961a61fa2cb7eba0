import { describe, expect, it } from 'vitest';
import { area, drawDisc, drawStroke, fits, toBitmap, toRuns } from '../src/runs';

function random(seed: number): () => number {
  let state = seed;
  return () => (state = (state * 1103515245 + 12345) % 2147483648) / 2147483648;
}

describe('runs', () => {
  it('come back from bitmaps as they were', () => {
    const next = random(3);
    for (let trial = 0; trial < 50; trial++) {
      const bitmap = Uint8Array.from({ length: 97 }, () => (next() < 0.4 ? 1 : 0));
      const runs = toRuns(bitmap);
      expect(toBitmap(runs, 97)).toEqual(bitmap);
      expect(area(runs)).toBe(bitmap.reduce((sum, each) => sum + each, 0));
      expect(fits(runs, 97)).toBe(true);
    }
  });

  it('of an empty and a full plane', () => {
    expect(toRuns(new Uint8Array(12))).toEqual([]);
    expect(toRuns(new Uint8Array(12).fill(1))).toEqual([0, 12]);
  });

  it.each([
    [[0, 5, 5, 2]],
    [[4, 2, 1, 1]],
    [[8, 5]],
    [[3]],
    [[0, 0]],
    [[-1, 2]],
    [[0.5, 1]],
  ])('that do not fit are known: %j', (runs) => {
    expect(fits(runs, 12)).toBe(false);
  });
});

describe('the brush', () => {
  it('sets the pixels whose centres are in the disc', () => {
    const [columns, rows] = [23, 17];
    for (const [x, y, radius] of [
      [10, 8, 4.5],
      [0.4, 0.2, 3],
      [22.6, 16.2, 6],
      [-2, 5, 3.5],
    ] as const) {
      const bitmap = new Uint8Array(columns * rows);
      drawDisc(bitmap, columns, x, y, radius, 1);
      const expected = bitmap.map((_, k) =>
        Math.hypot((k % columns) - x, Math.floor(k / columns) - y) <= radius ? 1 : 0,
      );
      expect(bitmap).toEqual(expected);
    }
  });

  it('leaves no gap in a fast stroke, and the eraser takes it all away', () => {
    const bitmap = new Uint8Array(60 * 40);
    drawStroke(bitmap, 60, [5, 5], [54, 33], 2, 1);
    for (let k = 0; k <= 100; k++) {
      const [x, y] = [5 + 0.49 * k, 5 + 0.28 * k];
      expect(bitmap[Math.round(y) * 60 + Math.round(x)]).toBe(1);
    }
    drawStroke(bitmap, 60, [5, 5], [54, 33], 3, 0);
    expect(bitmap.includes(1)).toBe(false);
  });
});
