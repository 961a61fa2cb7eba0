/**
 * Masks of one plane: runs, as the server sends and takes them, and bitmaps, which are drawn on.
 *
 * Runs are [start, length, start, length, ...] over the plane's pixels in row-major order, ascending and apart from
 * each other.
 */

export type Runs = readonly number[];
/** One byte a pixel, 0 or 1, row-major. */
export type Bitmap = Uint8Array;

export function toBitmap(runs: Runs, size: number): Bitmap {
  const bitmap = new Uint8Array(size);
  for (let k = 0; k + 1 < runs.length; k += 2) {
    const start = runs[k] ?? 0;
    bitmap.fill(1, start, start + (runs[k + 1] ?? 0));
  }
  return bitmap;
}

export function toRuns(bitmap: Bitmap): Runs {
  const runs: number[] = [];
  let at = bitmap.indexOf(1);
  while (at >= 0) {
    let end = bitmap.indexOf(0, at);
    if (end < 0) {
      end = bitmap.length;
    }
    runs.push(at, end - at);
    at = bitmap.indexOf(1, end);
  }
  return runs;
}

/** Return the number of pixels. */
export function area(runs: Runs): number {
  let sum = 0;
  for (let k = 1; k < runs.length; k += 2) {
    sum += runs[k] ?? 0;
  }
  return sum;
}

/** Return whether runs are ascending, apart, and within a plane of `size` pixels. */
export function fits(runs: Runs, size: number): boolean {
  let end = -1;
  for (let k = 0; k < runs.length; k += 2) {
    const start = runs[k];
    const length = runs[k + 1];
    if (!Number.isInteger(start) || !Number.isInteger(length) || start === undefined || length === undefined) {
      return false;
    }
    if (start <= end || length < 1) {
      return false;
    }
    end = start + length;
  }
  return end <= size;
}

/** Set the pixels of a disc around (x, y), which need not lie in the plane. */
export function drawDisc(bitmap: Bitmap, columns: number, x: number, y: number, radius: number, value: 0 | 1): void {
  const rows = bitmap.length / columns;
  const first = Math.max(0, Math.ceil(y - radius));
  const last = Math.min(rows - 1, Math.floor(y + radius));
  for (let row = first; row <= last; row++) {
    const half = Math.sqrt(radius * radius - (row - y) * (row - y));
    const from = Math.max(0, Math.ceil(x - half));
    const to = Math.min(columns - 1, Math.floor(x + half));
    if (from <= to) {
      bitmap.fill(value, row * columns + from, row * columns + to + 1);
    }
  }
}

/** Draw a stroke of discs from one point to another. */
export function drawStroke(
  bitmap: Bitmap,
  columns: number,
  from: readonly [number, number],
  to: readonly [number, number],
  radius: number,
  value: 0 | 1,
): void {
  const steps = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) / Math.max(0.5, radius / 2)));
  for (let step = 0; step <= steps; step++) {
    const share = step / steps;
    const x = from[0] + share * (to[0] - from[0]);
    const y = from[1] + share * (to[1] - from[1]);
    drawDisc(bitmap, columns, x, y, radius, value);
  }
}
