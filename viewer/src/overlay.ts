/**
 * What lies over a viewport's image: masks, maps, marks, and the tools that draw them.
 *
 * It draws on a canvas of its own over the viewport's, after each drawing of the viewport. Masks are painted pixel by
 * pixel of the image, so that any number of findings may overlap, and only those of the plane that is shown take
 * memory as pictures.
 */
import type { ImageInfo } from './api';
import { css, type Colour } from './colours';
import type { Finding, Findings } from './findings';
import { MapPictures } from './maps';
import { IMAGE_RENDERED, type Viewport } from './ohif';
import { drawStroke, toBitmap, toRuns, type Bitmap } from './runs';
import { ANSWERED, planeOf, type Session, type Shown } from './session';

type Point = readonly [number, number];

/** Canvas = matrix of image: x' = a x + c y + e, y' = b x + d y + f, for pixel centres at whole numbers. */
interface Affine {
  a: number;
  b: number;
  c: number;
  d: number;
  e: number;
  f: number;
}

const INSTANCE = /studies\/([^/?#]+)\/series\/([^/?#]+)\/instances\/([^/?#]+)(?:\/frames\/(\d+))?/;
const OUTLINE_ALPHA = 235;
/** Of the outlines of somebody else's label; no finding has it. */
const THEIRS: Colour = [255, 80, 200];
/** Most points that a scribble is sent as. */
const SCRIBBLE_POINTS = 12;

/** Read where an image is from its address in the viewer; null for one that did not come by DICOMweb. */
export function shownOf(imageId: string | undefined): Shown | null {
  const found = imageId ? INSTANCE.exec(imageId) : null;
  const [, study, series, instance, frame] = found ?? [];
  return study && series && instance ? { study, series, instance, frame: Number(frame ?? 1) } : null;
}

/** Paint a mask into an RGBA picture: its inside with an opacity from 0 to 1, and its outline. */
export function paint(bitmap: Bitmap, columns: number, colour: Colour, opacity: number): Uint8ClampedArray<ArrayBuffer> {
  const picture = new Uint8ClampedArray(bitmap.length * 4);
  const words = new Uint32Array(picture.buffer);
  const [red, green, blue] = colour;
  const word = (alpha: number): number => ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  const inside = word(Math.round(255 * opacity));
  const outline = word(OUTLINE_ALPHA);
  const last = bitmap.length - columns;
  for (let at = bitmap.indexOf(1); at >= 0; at = bitmap.indexOf(1, at + 1)) {
    const column = at % columns;
    const inner =
      column > 0 &&
      column < columns - 1 &&
      at >= columns &&
      at < last &&
      bitmap[at - 1] &&
      bitmap[at + 1] &&
      bitmap[at - columns] &&
      bitmap[at + columns];
    words[at] = inner ? inside : outline;
  }
  return picture;
}

export class Overlay {
  private readonly canvas = document.createElement('canvas');
  private readonly composed = document.createElement('canvas');
  private readonly scratch = document.createElement('canvas');
  private composedOf: unknown[] = [];
  private stroke: { finding: Finding; bitmap: Bitmap; value: 0 | 1; last: Point } | null = null;
  private path: Point[] = [];
  private start: Point | null = null;
  private pointer: Point | null = null;
  private awaited = 0;
  private readonly listeners = new AbortController();

  constructor(
    readonly viewport: Viewport,
    private readonly session: Session,
    private readonly maps: MapPictures,
    private readonly activate: () => void,
  ) {
    this.canvas.className = 'medclipsam-overlay';
    Object.assign(this.canvas.style, { position: 'absolute', inset: '0', width: '100%', height: '100%' });
    this.canvas.setAttribute('aria-hidden', 'true');
    viewport.element.append(this.canvas);
    const signal = this.listeners.signal;
    viewport.element.addEventListener(IMAGE_RENDERED, () => this.rendered(), { signal });
    session.addEventListener('change', () => this.schedule(), { signal });
    maps.addEventListener('change', () => this.schedule(), { signal });
    this.listen(signal);
    this.rendered();
  }

  destroy(): void {
    this.listeners.abort();
    cancelAnimationFrame(this.awaited);
    this.canvas.remove();
  }

  get shown(): Shown | null {
    return shownOf(this.viewport.getCurrentImageId?.());
  }

  /** Scroll to a plane of the session's image. */
  reveal(plane: number): void {
    const wanted = this.session.image?.planes[plane];
    const index = (this.viewport.getImageIds?.() ?? []).findIndex((id) => {
      const shown = shownOf(id);
      return shown?.instance === wanted?.sop && shown?.frame === wanted?.frame;
    });
    if (index >= 0) {
      void this.viewport.setImageIdIndex?.(index);
    }
  }

  private get plane(): number {
    const { image } = this.session;
    const shown = this.shown;
    return image && shown ? planeOf(image, shown) : -1;
  }

  private rendered(): void {
    this.dispatch();
    this.draw();
  }

  /** Called with what the viewport shows; the extension replaces it. */
  dispatch = (): void => undefined;

  private schedule(): void {
    cancelAnimationFrame(this.awaited);
    this.awaited = requestAnimationFrame(() => this.draw());
  }

  private affine(image: ImageInfo): Affine | null {
    const data = this.viewport.getImageData?.()?.imageData;
    if (!data) {
      return null;
    }
    const at = (x: number, y: number): readonly [number, number] =>
      this.viewport.worldToCanvas(data.indexToWorld([x, y, 0]));
    const origin = at(0, 0);
    const right = at(image.columns, 0);
    const down = at(0, image.rows);
    const found = {
      a: (right[0] - origin[0]) / image.columns,
      b: (right[1] - origin[1]) / image.columns,
      c: (down[0] - origin[0]) / image.rows,
      d: (down[1] - origin[1]) / image.rows,
      e: origin[0],
      f: origin[1],
    };
    return Object.values(found).every(Number.isFinite) ? found : null;
  }

  draw(): void {
    const { session, canvas } = this;
    const ratio = window.devicePixelRatio || 1;
    const width = Math.round(canvas.clientWidth * ratio);
    const height = Math.round(canvas.clientHeight * ratio);
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    const context = canvas.getContext('2d');
    const { image } = session;
    const plane = this.plane;
    const editable = image !== null && plane >= 0 && session.tool !== 'navigate';
    canvas.style.pointerEvents = editable ? 'auto' : 'none';
    canvas.style.cursor = editable ? (session.tool === 'brush' || session.tool === 'eraser' ? 'none' : 'crosshair') : '';
    if (!context) {
      return;
    }
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, width, height);
    const affine = image && plane >= 0 ? this.affine(image) : null;
    if (!image || !affine) {
      return;
    }
    this.compose(image, plane);
    const { a, b, c, d, e, f } = affine;
    context.setTransform(a * ratio, b * ratio, c * ratio, d * ratio, e * ratio, f * ratio);
    context.imageSmoothingEnabled = false;
    if (session.map) {
      const map = this.maps.get(session, plane);
      if (map) {
        context.globalAlpha = session.map.opacity;
        context.imageSmoothingEnabled = true;
        context.drawImage(map, -0.5, -0.5, image.columns, image.rows);
        context.imageSmoothingEnabled = false;
        context.globalAlpha = 1;
      }
    }
    if (!session.hidden) {
      context.drawImage(this.composed, -0.5, -0.5);
      if (this.stroke) {
        this.put(this.stroke.bitmap, image, this.stroke.finding.colour);
        context.drawImage(this.scratch, -0.5, -0.5);
      }
    }
    if (session.axes && !session.hidden) {
      this.drawAxes(context, plane, 1 / Math.hypot(a, b));
    }
    this.drawMarks(context, 1 / Math.hypot(a, b));
    if (performance.getEntriesByName(ANSWERED).length) {
      performance.measure('medclipsam.overlay', ANSWERED);
      performance.clearMarks(ANSWERED);
    }
  }

  /** Paint all findings of the plane into one picture, where something has changed. */
  private compose(image: ImageInfo, plane: number): void {
    const { session } = this;
    const left = this.stroke?.finding.id;
    const key = [image, plane, session.drawn, session.opacity, session.theirs, session.adjudication, session.active, left];
    if (key.every((each, k) => each === this.composedOf[k])) {
      return;
    }
    this.composedOf = key;
    for (const canvas of [this.composed, this.scratch]) {
      canvas.width = image.columns;
      canvas.height = image.rows;
    }
    const context = this.composed.getContext('2d', { willReadFrequently: true });
    const each = (findings: Findings, opacity: number, colour?: Colour): void => {
      for (const finding of findings) {
        const runs = finding.planes.get(plane);
        if (runs && finding.visible && finding.id !== left) {
          this.put(toBitmap(runs, image.rows * image.columns), image, colour ?? finding.colour, opacity);
          context?.drawImage(this.scratch, 0, 0);
        }
      }
    };
    each(session.drawn, session.opacity);
    // of the others' labels the outlines
    each(session.theirs?.findings ?? [], 0, THEIRS);
    for (const { masks, colour, visible } of session.adjudication?.readings ?? []) {
      for (const { planes } of visible ? masks : []) {
        const runs = planes.get(plane);
        if (runs) {
          this.put(toBitmap(runs, image.rows * image.columns), image, colour, 0);
          context?.drawImage(this.scratch, 0, 0);
        }
      }
    }
  }

  private put(bitmap: Bitmap, image: ImageInfo, colour: Colour, opacity = this.session.opacity): void {
    const picture = new ImageData(paint(bitmap, image.columns, colour, opacity), image.columns, image.rows);
    this.scratch.getContext('2d', { willReadFrequently: true })?.putImageData(picture, 0, 0);
  }

  /** Draw the axes of the active finding, where they are on the plane. */
  private drawAxes(context: CanvasRenderingContext2D, plane: number, pixel: number): void {
    const finding = this.session.activeFinding;
    const measured = finding && this.session.measurementsOf(finding);
    for (const axis of [measured?.long_axis, measured?.short_axis]) {
      if (axis?.plane === plane) {
        // light on dark, to be seen on any picture
        for (const [width, colour] of [
          [4, 'rgb(0 0 0 / 0.7)'],
          [1.5, 'white'],
        ] as const) {
          context.lineWidth = width * pixel;
          context.strokeStyle = colour;
          context.beginPath();
          context.moveTo(...axis.start);
          context.lineTo(...axis.end);
          context.stroke();
        }
      }
    }
  }

  private drawMarks(context: CanvasRenderingContext2D, pixel: number): void {
    const { session } = this;
    const plane = this.plane;
    context.lineWidth = 2 * pixel;
    for (const mark of session.marks) {
      if (mark.plane === plane) {
        context.beginPath();
        context.arc(mark.x, mark.y, 5 * pixel, 0, 2 * Math.PI);
        context.fillStyle = mark.positive ? 'rgb(0 200 80)' : 'rgb(230 40 40)';
        context.fill();
        context.strokeStyle = 'white';
        context.stroke();
      }
    }
    context.strokeStyle = css(session.activeFinding?.colour ?? [255, 255, 255]);
    if (this.start && this.pointer && session.tool === 'box') {
      const [x, y] = this.start;
      context.strokeRect(x, y, this.pointer[0] - x, this.pointer[1] - y);
    }
    if (this.path.length && session.tool === 'scribble') {
      context.beginPath();
      for (const [x, y] of this.path) {
        context.lineTo(x, y);
      }
      context.stroke();
    }
    if (this.pointer && (session.tool === 'brush' || session.tool === 'eraser')) {
      context.setLineDash(session.tool === 'eraser' ? [4 * pixel, 4 * pixel] : []);
      context.beginPath();
      context.arc(this.pointer[0], this.pointer[1], session.brush, 0, 2 * Math.PI);
      context.stroke();
      context.setLineDash([]);
    }
  }

  private listen(signal: AbortSignal): void {
    const { canvas } = this;
    const own = (event: MouseEvent): boolean => event.button === 0;
    // the viewport's own tools keep the other buttons and the wheel
    for (const type of ['mousedown', 'mouseup', 'click', 'dblclick'] as const) {
      canvas.addEventListener(type, (event) => own(event) && event.stopPropagation(), { signal });
    }
    canvas.addEventListener('pointerdown', (event) => own(event) && this.down(event), { signal });
    canvas.addEventListener('pointermove', (event) => this.move(event), { signal });
    canvas.addEventListener('pointerup', (event) => own(event) && this.up(event), { signal });
    canvas.addEventListener('pointercancel', () => this.drop(), { signal });
    canvas.addEventListener(
      'pointerleave',
      () => {
        this.pointer = null;
        this.schedule();
      },
      { signal },
    );
  }

  private at(event: PointerEvent): Point | null {
    const { image } = this.session;
    const affine = image ? this.affine(image) : null;
    if (!affine) {
      return null;
    }
    const box = this.canvas.getBoundingClientRect();
    const x = event.clientX - box.left - affine.e;
    const y = event.clientY - box.top - affine.f;
    const { a, b, c, d } = affine;
    const determinant = a * d - b * c;
    return determinant ? [(d * x - c * y) / determinant, (a * y - b * x) / determinant] : null;
  }

  private down(event: PointerEvent): void {
    const { session } = this;
    const { image } = session;
    const at = this.at(event);
    const plane = this.plane;
    if (!image || !at || plane < 0) {
      return;
    }
    this.activate();
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.pointer = this.start = at;
    this.path = [at];
    if (session.tool === 'brush' || session.tool === 'eraser') {
      const finding = session.activeFinding ?? (session.tool === 'brush' ? session.begin() : undefined);
      if (!finding) {
        session.fail(new Error('Choose the finding to erase from.'));
        this.drop();
        return;
      }
      const bitmap = toBitmap(finding.planes.get(plane) ?? [], image.rows * image.columns);
      const value = session.tool === 'brush' ? 1 : 0;
      this.stroke = { finding, bitmap, value, last: at };
      drawStroke(bitmap, image.columns, at, at, session.brush, value);
    }
    this.schedule();
  }

  private move(event: PointerEvent): void {
    const { session } = this;
    const at = this.at(event);
    if (!at) {
      return;
    }
    this.pointer = at;
    if (this.start) {
      this.path.push(at);
    }
    if (this.stroke && session.image) {
      drawStroke(this.stroke.bitmap, session.image.columns, this.stroke.last, at, session.brush, this.stroke.value);
      this.stroke.last = at;
    }
    this.schedule();
  }

  private up(event: PointerEvent): void {
    const { session, start, path, stroke } = this;
    const plane = this.plane;
    const at = this.at(event) ?? this.pointer;
    const { image } = session;
    this.drop();
    if (!image || !start || !at || plane < 0) {
      return;
    }
    const inside = ([x, y]: Point): { plane: number; x: number; y: number } => ({
      plane,
      x: Math.min(image.columns - 1, Math.max(0, Math.round(x))),
      y: Math.min(image.rows - 1, Math.max(0, Math.round(y))),
    });
    if (stroke) {
      const what = stroke.value ? `brush on ${stroke.finding.name}` : `eraser on ${stroke.finding.name}`;
      session.draw(stroke.finding, plane, toRuns(stroke.bitmap), what);
    } else if (session.tool === 'positive' || session.tool === 'negative') {
      const positive = (session.tool === 'positive') !== event.altKey;
      session.click([inside(at)], positive);
    } else if (session.tool === 'scribble') {
      const every = Math.max(1, Math.ceil(path.length / SCRIBBLE_POINTS));
      session.click(path.filter((_, k) => k % every === 0).map(inside), !event.altKey);
    } else if (session.tool === 'box') {
      const [one, other] = [inside(start), inside(at)];
      if (Math.abs(one.x - other.x) > 1 && Math.abs(one.y - other.y) > 1) {
        const [x0, x1] = [Math.min(one.x, other.x), Math.max(one.x, other.x)];
        const [y0, y1] = [Math.min(one.y, other.y), Math.max(one.y, other.y)];
        void session.refine({ boxes: [{ plane, x0, y0, x1, y1 }] });
      }
    }
  }

  private drop(): void {
    this.stroke = this.start = null;
    this.path = [];
    this.schedule();
  }
}
