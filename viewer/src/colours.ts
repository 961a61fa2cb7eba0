/**
 * Colours that differ from each other and from grey images.
 */
export type Colour = readonly [number, number, number];

// After Okabe and Ito, whose colours people with colour blindness tell apart, without black and grey.
const FIRST: readonly Colour[] = [
  [230, 159, 0],
  [86, 180, 233],
  [0, 190, 130],
  [240, 228, 66],
  [213, 94, 0],
  [204, 121, 167],
  [80, 120, 255],
];
const GOLDEN_ANGLE = 137.508;

function fromHue(hue: number, lightness: number): Colour {
  const channel = (offset: number): number => {
    const at = (offset + hue / 30) % 12;
    const value = lightness - 0.8 * Math.min(lightness, 1 - lightness) * Math.max(-1, Math.min(at - 3, 9 - at, 1));
    return Math.round(255 * value);
  };
  return [channel(0), channel(8), channel(4)];
}

/** Return the first colour that none of the given ones is. */
export function nextColour(used: Iterable<Colour>): Colour {
  const taken = new Set([...used].map(String));
  for (let k = 0; ; k++) {
    const colour = FIRST[k] ?? fromHue((k * GOLDEN_ANGLE) % 360, k % 2 ? 0.72 : 0.55);
    if (!taken.has(String(colour)) || k > 500) {
      return colour;
    }
  }
}

export const css = (colour: Colour, alpha = 1): string => `rgb(${colour.join(' ')} / ${alpha})`;
export const hex = (colour: Colour): string =>
  `#${colour.map((channel) => channel.toString(16).padStart(2, '0')).join('')}`;

/** Read a colour as the server keeps it, "#rrggbb"; undefined where it is none. */
export function fromHex(text: unknown): Colour | undefined {
  const found = typeof text === 'string' ? /^#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})$/i.exec(text) : null;
  return found ? [parseInt(found[1] ?? '', 16), parseInt(found[2] ?? '', 16), parseInt(found[3] ?? '', 16)] : undefined;
}
