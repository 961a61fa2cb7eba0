/**
 * Saliency and uncertainty maps as coloured pictures, fetched as they are shown.
 */
import type { Session } from './session';

const MOST = 32;

/** Return the colour of a value from 0 to 1 in a black, purple, orange, yellow scale, after "inferno". */
function heat(value: number): [number, number, number] {
  const stops = [
    [0, 0, 4],
    [87, 16, 110],
    [188, 55, 84],
    [249, 142, 9],
    [252, 255, 164],
  ] as const;
  const at = Math.min(Math.max(value, 0), 0.9999) * (stops.length - 1);
  const from = stops[Math.floor(at)] ?? stops[0];
  const to = stops[Math.floor(at) + 1] ?? from;
  const share = at - Math.floor(at);
  return [0, 1, 2].map((k) => Math.round((from[k] ?? 0) * (1 - share) + (to[k] ?? 0) * share)) as [
    number,
    number,
    number,
  ];
}

export class MapPictures extends EventTarget {
  private readonly kept = new Map<string, HTMLCanvasElement | 'loading' | 'failed'>();

  /** Return the picture of the map that is chosen, on a plane; null until it is there. */
  get(session: Session, plane: number): HTMLCanvasElement | null {
    const chosen = session.map;
    const finding = session.findings.find((each) => each.id === chosen?.finding);
    const address = chosen && finding?.evidence?.[chosen.kind];
    if (!address || finding.evidence.mapPlanes?.includes(plane) === false) {
      return null;
    }
    const url = new URL(address, new URL(session.api.root, location.href));
    url.searchParams.set('plane', String(plane));
    const found = this.kept.get(url.href);
    if (found instanceof HTMLCanvasElement) {
      return found;
    }
    if (!found) {
      this.kept.set(url.href, 'loading');
      void this.load(url.href, session);
    }
    return null;
  }

  private async load(url: string, session: Session): Promise<void> {
    try {
      const answer = await fetch(url);
      if (!answer.ok) {
        throw new Error(
          answer.status === 404 ? 'The map is no longer kept; run the text again.' : `The map: ${answer.status}.`,
        );
      }
      this.kept.set(url, colour(await createImageBitmap(await answer.blob())));
      for (const old of [...this.kept.keys()].slice(0, Math.max(0, this.kept.size - MOST))) {
        this.kept.delete(old);
      }
    } catch (error) {
      this.kept.set(url, 'failed');
      session.fail(error);
    }
    this.dispatchEvent(new Event('change'));
  }
}

function colour(grey: ImageBitmap): HTMLCanvasElement {
  const canvas = document.createElement('canvas');
  canvas.width = grey.width;
  canvas.height = grey.height;
  const context = canvas.getContext('2d', { willReadFrequently: true });
  if (context) {
    context.drawImage(grey, 0, 0);
    const picture = context.getImageData(0, 0, canvas.width, canvas.height);
    const table = Array.from({ length: 256 }, (_, value) => heat(value / 255));
    for (let k = 0; k < picture.data.length; k += 4) {
      const value = picture.data[k] ?? 0;
      picture.data.set([...(table[value] ?? [0, 0, 0]), value], k);
    }
    context.putImageData(picture, 0, 0);
  }
  grey.close();
  return canvas;
}
