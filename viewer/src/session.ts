/**
 * The image that is annotated: its findings, what runs for it, and what of it is kept on the server.
 */
import {
  ServerError,
  UnreachableError,
  type Answer,
  type Api,
  type Click,
  type Clicks,
  type Draft,
  type ImageInfo,
  type MapKind,
  type Network,
  type Networks,
  type Proposal,
  type Review,
  type Saved,
  type ServerInfo,
  type State,
  type TargetAnswer,
} from './api';
import {
  freeName,
  fromSegments,
  History,
  makeFinding,
  planesOf,
  replace,
  toDraft,
  toSegments,
  withAnswer,
  withPlane,
  type Evidence,
  type Finding,
  type Findings,
  type Source,
} from './findings';
import type { Measured } from './measure';
import { readingsOf, seen, withVisible, type Adjudication, type Consensus } from './readers';
import { area, type Runs } from './runs';

export type Model = 'text' | 'network';
export type Tool = 'navigate' | 'positive' | 'negative' | 'box' | 'scribble' | 'brush' | 'eraser';

export interface Work {
  what: string;
  request: string;
  fraction: number | null;
  message: string;
  secondsLeft: number | null;
  cancelled: boolean;
}

/** Where an image was found in the viewer. */
export interface Shown {
  study: string;
  series: string;
  instance: string;
  frame: number;
}

/** Mark of the time at which the last answer of a model came. */
export const ANSWERED = 'medclipsam.answer';
const DRAFT_DELAY = 700;
const MEASURE_DELAY = 300;
const LOOK_AGAIN = 3000;
/** Milliseconds between two looks at rounds and training. */
const STATE_EVERY = 5000;
const RECENT_KEY = 'medclipsam.recent';
const LAST_KEY = 'medclipsam.last';
const REASON_KEY = 'medclipsam.reason';
const REPORT_KEY = 'medclipsam.report';
const MOST_RECENT = 8;
/** The strategy that offers what waits for a consensus. */
export const ADJUDICATION = 'adjudication';
/** What the server says why it offers an image, in words. */
const REASONS: Record<string, string> = {
  assigned: 'Assigned to you.',
  'second read': 'Two people read this image, each unaware of the other.',
  adjudication: 'Its readers wait for a consensus; of those that wait they agree least.',
};

/** The viewer's own steps back and forth, among which those of this panel take their places. */
export interface Steps {
  push(step: { restoreMemo: (undo?: boolean) => void }): unknown;
  undo(): void;
  redo(): void;
}

export class Session extends EventTarget {
  steps: Steps | null = null;
  image: ImageInfo | null = null;
  /** Index of the plane that is shown; null where the viewer shows another image. */
  plane: number | null = null;
  history = new History();
  active: number | null = null;
  tool: Tool = 'navigate';
  brush = 8;
  model: Model = 'text';
  opacity = 0.4;
  map: { kind: MapKind; opacity: number; finding: number } | null = null;
  hidden = false;
  /** Whether the axes of the active finding are drawn. */
  axes = false;

  work: Work | null = null;
  error: string | null = null;
  note: string | null = null;
  down: string | null = null;
  theirs: { findings: Findings; saved: Saved } | null = null;
  /** Labels of several readers that this reviewer may make one of. */
  adjudication: Adjudication | null = null;
  /** Whether it is asked if an empty label is to be saved. */
  asksEmpty: { asNew: boolean } | null = null;
  /** Another window of the same user has changed the draft. */
  otherDraft: Draft | null = null;

  draftState: 'none' | 'waiting' | 'keeping' | 'kept' | 'failed' = 'none';
  keptAt: Date | null = null;
  /** Version of the saved label that this work began with. */
  base: string | null = null;
  savedBy: string | null = null;
  info: ServerInfo | null = null;
  state: State | null = null;
  networks: Networks = {};
  /** Name of the network that runs. */
  network: string | null = null;
  /** Why the findings are not measured; null where they are or soon will be. */
  unmeasured: string | null = null;

  private readonly measured = new WeakMap<Finding['planes'], Measured>();
  private measuring = false;
  private measureTimer: ReturnType<typeof setTimeout> | undefined;
  private watch: ReturnType<typeof setInterval> | undefined;
  private revision: Draft['revision'] = null;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private chain: Promise<void> = Promise.resolve();
  private loading: string | null = null;

  /** Whether an image is being opened, whose draft or label may still come. */
  get opening(): boolean {
    return this.loading !== null;
  }

  constructor(
    readonly api: Api,
    private readonly storage: Pick<Storage, 'getItem' | 'setItem'> = sessionStorage,
  ) {
    super();
  }

  get findings(): Findings {
    return this.history.findings;
  }

  get activeFinding(): Finding | undefined {
    return this.findings.find((each) => each.id === this.active);
  }

  get size(): number {
    return this.image ? this.image.rows * this.image.columns : 0;
  }

  get isVolume(): boolean {
    const { planes, modality, spacing_mm: spacing } = this.image ?? { planes: [], modality: null, spacing_mm: null };
    // of a file without a modality the distance of its planes tells; the frames of a loop have none
    const stacked = ['CT', 'MR', 'PT', 'NM'].includes(modality ?? '') || Boolean(spacing?.[0]);
    return planes.length > 1 && stacked;
  }

  get hasNetwork(): boolean {
    return this.networkNames.length > 0;
  }

  /** Names of the networks that can be run. */
  get networkNames(): string[] {
    return Object.keys(this.networks).filter((name) => served(this.networks[name]));
  }

  /** The version that runs, and whether it could not be validated; null where there is none. */
  get chosenNetwork(): Network | null {
    return served(this.networks[this.network ?? '']) ?? null;
  }

  /** Whether measurements are stored in the PACS with a label that is saved. */
  get withReport(): boolean {
    return this.image?.reports === 'offered' && this.storage.getItem(REPORT_KEY) === 'yes';
  }

  set withReport(wanted: boolean) {
    this.storage.setItem(REPORT_KEY, wanted ? 'yes' : 'no');
    this.changed();
  }

  get canPropagate(): boolean {
    const refine = this.info?.models['refine'];
    return (this.image?.planes.length ?? 0) > 1 && refine?.config !== undefined && 'propagate' in refine.config;
  }

  get unsaved(): boolean {
    return this.draftState !== 'none';
  }

  get recent(): string[] {
    try {
      const kept: unknown = JSON.parse(this.storage.getItem(RECENT_KEY) ?? '[]');
      return Array.isArray(kept) ? kept.filter((each) => typeof each === 'string') : [];
    } catch {
      return [];
    }
  }

  get lastText(): string {
    return this.storage.getItem(LAST_KEY) ?? '';
  }

  changed(): void {
    this.dispatchEvent(new Event('change'));
  }

  /** Tell in place what went wrong. */
  fail(error: unknown): void {
    if (error instanceof UnreachableError) {
      this.wentDown(error.message);
    } else {
      this.error = error instanceof Error ? error.message : String(error);
    }
    this.changed();
  }

  async start(): Promise<void> {
    try {
      this.info = await this.api.info();
      this.changed();
    } catch (error) {
      this.fail(error);
    }
    await Promise.all([this.refreshState(), this.refreshNetworks()]);
    clearInterval(this.watch);
    this.watch = setInterval(() => {
      if (!document.hidden && !this.down) {
        void this.refreshState();
      }
    }, STATE_EVERY);
  }

  stop(): void {
    clearInterval(this.watch);
  }

  async refreshState(): Promise<void> {
    try {
      const before = this.state;
      this.state = await this.api.state();
      this.changed();
      const ended = before?.training && !this.state.training;
      if (before && (ended || before.last?.network !== this.state.last?.network)) {
        await this.refreshNetworks(true);
      }
    } catch (error) {
      // it is shown in a corner and nothing depends on it
      if (error instanceof UnreachableError) {
        this.fail(error);
      }
    }
  }

  /** Ask which networks there are; `tell` says so where there is a new one. */
  private async refreshNetworks(tell = false): Promise<void> {
    try {
      const before = this.networks;
      this.networks = await this.api.networks();
      const names = this.networkNames;
      this.network = this.network && names.includes(this.network) ? this.network : (names[0] ?? null);
      if (!this.network) {
        this.model = 'text';
      }
      const fresh = names.find((name) => served(this.networks[name])?.version !== served(before[name])?.version);
      const network = fresh === undefined ? undefined : served(this.networks[fresh]);
      if (tell && network && !this.work && !this.error) {
        this.note = `${called(network)} has been trained${network.status === 'unvalidated' ? ', and not been validated' : ''}; choose "By the trained network" to run it.`;
      }
      this.changed();
    } catch (error) {
      this.fail(error);
    }
  }

  /** What the server has measured of a finding; undefined where it has not. */
  measurementsOf(finding: Finding): Measured | undefined {
    return this.measured.get(finding.planes);
  }

  private measureSoon(): void {
    clearTimeout(this.measureTimer);
    this.measureTimer = setTimeout(() => void this.measure(), MEASURE_DELAY);
  }

  /** Have the server measure what has changed. */
  private async measure(): Promise<void> {
    const image = this.image;
    const asked = this.findings.filter((each) => each.planes.size && !this.measured.has(each.planes));
    // what changes meanwhile is measured after it
    if (!image || this.measuring || !asked.length) {
      return;
    }
    this.measuring = true;
    try {
      const segments = toSegments(asked).map(({ name, planes }) => ({ name, planes }));
      const found = await this.api.measure(image.image, segments);
      asked.forEach((finding, k) => {
        const measured = found[k];
        if (measured) {
          this.measured.set(finding.planes, measured);
        }
      });
      this.unmeasured = null;
      this.measureSoon();
    } catch (error) {
      this.unmeasured = error instanceof Error ? error.message : String(error);
      if (error instanceof UnreachableError) {
        this.fail(error);
      }
    } finally {
      this.measuring = false;
    }
    this.changed();
  }

  /** Follow what the viewer shows. */
  async show(shown: Shown | null): Promise<void> {
    const plane = shown && this.image ? planeOf(this.image, shown) : -1;
    if (plane >= 0) {
      if (plane !== this.plane) {
        this.plane = plane;
        this.changed();
      }
      return;
    }
    if (!shown) {
      return;
    }
    const key = `${shown.series}/${shown.instance}`;
    if (this.loading === key) {
      return;
    }
    this.loading = key;
    await this.flush();
    try {
      const image = await this.api.image(shown.study, shown.series, shown.instance, shown.frame);
      if (this.loading === key) {
        await this.open(image, planeOf(image, shown));
      }
    } catch (error) {
      this.image = null;
      this.history = new History();
      this.fail(error);
    } finally {
      if (this.loading === key) {
        this.loading = null;
        this.changed();
      }
    }
  }

  private async open(image: ImageInfo, plane: number): Promise<void> {
    this.image = image;
    this.plane = plane < 0 ? null : plane;
    this.history = new History();
    this.active = null;
    this.error = this.note = null;
    this.theirs = this.otherDraft = this.asksEmpty = this.adjudication = null;
    this.map = null;
    this.unmeasured = null;
    this.base = this.savedBy = null;
    this.revision = null;
    this.keptAt = null;
    this.draftState = 'none';
    this.changed();
    const [found, label, several] = await Promise.all([
      this.api.draft(image.image),
      this.api.label(image.image),
      this.api.toAdjudicate(image.image),
    ]);
    if (this.image !== image) {
      return;
    }
    this.adjudication = several && readingsOf(several, this.size);
    // what another browser has left is of no use once somebody has saved
    const stale = found?.own === false && label?.at && found.saved_at && isBefore(found.saved_at, label.at);
    const draft = stale ? null : found;
    if (label) {
      this.base = label.version;
      this.savedBy = label.by ?? '';
    }
    const proposal = draft || label || several ? null : await this.proposed(image);
    if (this.image !== image) {
      return;
    }
    const kept = draft ?? label ?? proposal;
    // a text that was answered meanwhile is not thrown away
    if (kept && !this.findings.length) {
      this.history = new History(fromSegments(kept.segments, this.size));
      this.active = this.findings[0]?.id ?? null;
    }
    if (draft) {
      const own = draft.own !== false;
      this.base = draft.base;
      this.revision = own ? (draft.revision ?? null) : null;
      this.draftState = 'kept';
      this.keptAt = draft.saved_at ? new Date(draft.saved_at) : new Date();
      this.note = own
        ? 'Your unsaved work on this image is back.'
        : 'Unsaved work from another browser is shown; what you change is kept beside it.';
    } else if (label) {
      const what = label.consensus ? 'The consensus of the readers' : 'The saved label';
      this.note = `${what} of this image is shown${reviewed(label.review)}.`;
    } else if (proposal && this.findings.length) {
      const by: Record<string, string> = { 'zero-shot': ' by text', 'pre-annotation': ' before' };
      this.note = `A mask that was made${by[proposal.by] ?? ` by ${proposal.by}`} waits here: correct it, then save it.`;
    }
    const first = this.adjudication?.readings.flatMap((each) => each.masks).find((mask) => mask.planes.size);
    if (this.findings.length) {
      this.measureSoon();
      this.reveal();
    } else if (first) {
      this.reveal(first.planes);
    } else if (this.isVolume && this.plane !== null && (this.plane === 0 || this.plane === image.planes.length - 1)) {
      // the ends of a volume show little
      this.goTo(Math.floor(image.planes.length / 2));
    }
    this.changed();
  }

  /** Return what a model has left for this image; without it the image is labelled as any other. */
  private async proposed(image: ImageInfo): Promise<Proposal | null> {
    try {
      return await this.api.proposal(image.image);
    } catch (error) {
      this.fail(error);
      return null;
    }
  }

  /** Run a text, or the network, on the image. */
  async run(text: string): Promise<void> {
    const image = this.image;
    const asked = text.trim();
    if (!image) {
      this.error = 'No image is open that the server knows.';
      this.changed();
      return;
    }
    if (this.model === 'text') {
      if (!asked) {
        this.error = 'Type what to look for, such as "left lung; heart".';
        this.changed();
        return;
      }
      this.remember(asked);
    }
    const source: Source = this.model;
    const network = source === 'network' ? this.chosenNetwork : null;
    if (source === 'network' && !network) {
      this.error = 'No network has been trained on these studies yet.';
      this.changed();
      return;
    }
    await this.during(network ? `Running ${called(network)}` : `Looking for ${asked}`, async (work) => {
      const model = network?.name ?? 'text_prompt';
      const unvalidated = network?.status === 'unvalidated' ? { unvalidated: true } : {};
      const params = network ? unvalidated : { text: asked };
      const begin = this.findings;
      const masks = new Map<string, Map<number, Runs>>();
      const answer = await this.listen(image, model, params, work, (name, plane, runs) => {
        const planes = masks.get(name) ?? new Map<number, Runs>();
        masks.set(name, planes.set(plane, runs));
        let partial = begin;
        for (const [each, found] of masks) {
          partial = withAnswer(partial, { name: each, source, planes: new Map(found), evidence: null }).findings;
        }
        this.preview = partial;
      });
      this.take(image, answer, source, network ? called(network) : asked);
    });
  }

  /** Findings as they stand while an answer comes in; null when none does. */
  preview: Findings | null = null;

  get drawn(): Findings {
    return this.preview ?? this.findings;
  }

  /** Clicks that wait for their answer. */
  marks: { plane: number; x: number; y: number; positive: boolean }[] = [];

  /** Correct the active finding by clicks in it, or outside of it. */
  click(points: Click[], positive: boolean): void {
    if (!positive && !this.activeFinding) {
      this.fail(new Error('Choose the finding to take away from.'));
      return;
    }
    const marks = points.map((point) => ({ ...point, positive }));
    this.marks = [...this.marks, ...marks];
    this.changed();
    void this.refine(positive ? { foreground: points } : { background: points }).finally(() => {
      this.marks = this.marks.filter((mark) => !marks.includes(mark));
      this.changed();
    });
  }

  /** Correct the active finding by clicks or a box, or carry it through the volume. */
  refine(clicks: Clicks, propagate = false): Promise<void> {
    const image = this.image;
    if (!image || (propagate && !(this.canPropagate && this.activeFinding?.planes.size))) {
      return Promise.resolve();
    }
    // clicks that come while one is answered wait for it, and go on from its mask
    this.chain = this.chain.then(async () => {
      if (this.image !== image) {
        return;
      }
      const finding = this.activeFinding ?? this.begin();
      const what = propagate ? `Carrying ${finding.name} through the volume` : `Correcting ${finding.name}`;
      await this.during(what, async (work) => {
        const params = {
          label: finding.name,
          clicks,
          segments: toSegments([finding]).map(({ name, planes }) => ({ name, planes })),
          ...(propagate ? { propagate } : {}),
        };
        let present = finding;
        const answer = await this.listen(image, 'refine', params, work, (_name, plane, runs) => {
          present = withPlane(present, plane, runs);
          this.preview = replace(this.findings, finding.id, present);
        });
        const segment = answer.segments[0];
        if (segment) {
          const source: Source = finding.source === 'hand' && !finding.planes.size ? 'clicks' : finding.source;
          const planes = planesOf(segment, this.size);
          this.push(replace(this.findings, finding.id, { planes, edited: true, source, visible: true }), what);
        }
      });
    });
    return this.chain;
  }

  private async during(what: string, run: (work: Work) => Promise<void>): Promise<void> {
    const work: Work = {
      what,
      request: [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, '0')).join(''),
      fraction: null,
      message: '',
      secondsLeft: null,
      cancelled: false,
    };
    this.work = work;
    this.error = this.note = null;
    this.changed();
    try {
      await run(work);
    } catch (error) {
      if (work.cancelled) {
        this.note = `${what}: cancelled.`;
      } else {
        this.fail(error);
      }
    } finally {
      if (this.work === work) {
        this.work = null;
      }
      this.preview = null;
      this.changed();
    }
  }

  private async listen(
    image: ImageInfo,
    model: string,
    params: object,
    work: Work,
    partial: (target: string, plane: number, runs: Runs) => void,
  ): Promise<Answer> {
    for await (const line of this.api.infer(model, image.image, params, work.request)) {
      if (line.event === 'progress') {
        work.fraction = line.fraction ?? null;
        work.message = line.message ?? '';
        work.secondsLeft = line.seconds_left ?? null;
      } else if (line.event === 'mask') {
        if (this.image === image) {
          partial(line.target, line.plane, line.runs);
        }
      } else if (line.event === 'error') {
        throw new ServerError(line.status, line.detail);
      } else {
        performance.mark(ANSWERED);
        return line;
      }
      this.changed();
    }
    throw new UnreachableError('The server ended the answer before its result; it may have been stopped.');
  }

  async cancel(): Promise<void> {
    const work = this.work;
    if (!work || work.cancelled) {
      return;
    }
    work.cancelled = true;
    work.message = 'cancelling';
    this.changed();
    try {
      await this.api.cancel(work.request);
    } catch (error) {
      work.cancelled = false;
      this.fail(error);
    }
  }

  private take(image: ImageInfo, answer: Answer, source: Source, what: string): void {
    if (this.image !== image) {
      return;
    }
    let findings = this.findings;
    let first: number | null = null;
    let found: number | null = null;
    const targets = new Map((answer.params.targets ?? []).map((target) => [target.name, target]));
    for (const segment of answer.segments) {
      const target = targets.get(segment.name);
      const planes = planesOf(segment, this.size);
      const evidence = evidenceOf(segment.name, target, answer);
      const taken = withAnswer(findings, { name: segment.name, source, planes, evidence });
      findings = taken.findings;
      first ??= taken.id;
      found ??= planes.size ? taken.id : null;
    }
    this.active = found ?? first ?? this.active;
    this.push(findings, what);
    this.reveal();
    if (!answer.segments.length) {
      this.note = answer.params.sentence ?? 'The model answered without a finding.';
    }
  }

  /** Make an empty finding to draw on. */
  begin(name = 'finding'): Finding {
    const made = makeFinding(this.findings, {
      name: freeName(this.findings, name),
      source: 'hand',
      planes: new Map(),
    });
    this.active = made.id;
    this.push([...this.findings, made], `new ${made.name}`);
    return made;
  }

  push(findings: Findings, what: string): void {
    const { history } = this;
    history.push(findings, what);
    this.steps?.push({
      restoreMemo: (undo) => {
        // another image may be open by now
        if (this.history === history && (undo ? history.undo() : history.redo())) {
          this.touched();
        }
      },
    });
    this.touched();
  }

  undo(): void {
    if (this.steps) {
      this.steps.undo();
    } else if (this.history.undo()) {
      this.touched();
    }
  }

  redo(): void {
    if (this.steps) {
      this.steps.redo();
    } else if (this.history.redo()) {
      this.touched();
    }
  }

  /** Put a hand-drawn plane in place. */
  draw(finding: Finding, plane: number, runs: Runs, what: string): void {
    const changed = withPlane(finding, plane, runs);
    this.push(replace(this.findings, finding.id, { planes: changed.planes, edited: true, visible: true }), what);
  }

  rename(id: number, name: string): void {
    const wanted = name.trim();
    const finding = this.findings.find((each) => each.id === id);
    if (!finding || !wanted || wanted === finding.name) {
      return;
    }
    if (this.findings.some((each) => each.name === wanted)) {
      this.error = `There is a finding "${wanted}" already; names must differ.`;
      this.changed();
      return;
    }
    this.push(replace(this.findings, id, { name: wanted, edited: true }), `rename ${finding.name}`);
  }

  clear(id: number): void {
    const finding = this.findings.find((each) => each.id === id);
    if (finding) {
      const left = this.findings.filter((each) => each.id !== id);
      if (this.active === id) {
        this.active = left[0]?.id ?? null;
      }
      if (this.map?.finding === id) {
        this.map = null;
      }
      this.push(left, `clear ${finding.name}`);
    }
  }

  setVisible(id: number, visible: boolean): void {
    this.history.amend(replace(this.findings, id, { visible }));
    this.changed();
  }

  select(id: number): void {
    this.active = id;
    this.reveal();
    this.changed();
  }

  /** Show the plane on which the active finding is largest, unless it is on the one that is shown. */
  private reveal(planes = this.activeFinding?.planes): void {
    if (!planes?.size || (this.plane !== null && planes.has(this.plane))) {
      return;
    }
    const [largest] = [...planes].reduce((best, each) => (area(each[1]) > area(best[1]) ? each : best));
    this.goTo(largest);
  }

  private goTo(plane: number): void {
    this.dispatchEvent(new CustomEvent('reveal', { detail: plane }));
  }

  setTool(tool: Tool): void {
    this.tool = tool;
    this.changed();
  }

  /** Show a map of the active finding, or none where it is shown. */
  toggleMap(kind: MapKind): void {
    const finding = this.activeFinding;
    if (this.map?.kind === kind) {
      this.map = null;
    } else if (finding?.evidence?.[kind]) {
      this.map = { kind, opacity: this.map?.opacity ?? 0.6, finding: finding.id };
    } else {
      this.error = finding
        ? `There is no ${kind} map of ${finding.name}; ${kind === 'saliency' ? 'a text' : 'a network'} makes one.`
        : 'Choose a finding first.';
    }
    this.changed();
  }

  /** Draw the axes of the active finding, on the plane that they are on, or no longer. */
  toggleAxes(): void {
    this.axes = !this.axes;
    const finding = this.activeFinding;
    const plane = finding && this.measurementsOf(finding)?.long_axis?.plane;
    if (this.axes && plane !== undefined && plane !== this.plane) {
      this.goTo(plane);
    }
    this.changed();
  }

  private touched(): void {
    if (this.active !== null && !this.activeFinding) {
      this.active = this.findings[0]?.id ?? null;
    }
    this.draftState = 'waiting';
    clearTimeout(this.timer);
    this.timer = setTimeout(() => void this.keep(), DRAFT_DELAY);
    this.measureSoon();
    this.changed();
  }

  /** Keep at once what waits to be kept. */
  async flush(): Promise<void> {
    if (this.draftState === 'waiting' || this.draftState === 'failed') {
      clearTimeout(this.timer);
      await this.keep();
    }
  }

  private async keep(overwrite = false): Promise<void> {
    const image = this.image;
    if (!image) {
      return;
    }
    const kept = this.findings;
    this.draftState = 'keeping';
    this.changed();
    try {
      const draft = await this.api.keepDraft(image.image, {
        segments: toDraft(kept),
        base: this.base,
        revision: this.revision ?? null,
      });
      if (this.image !== image) {
        return;
      }
      this.revision = draft.revision ?? null;
      this.keptAt = new Date();
      if (this.findings === kept || overwrite) {
        this.draftState = 'kept';
      }
    } catch (error) {
      if (this.image !== image) {
        return;
      }
      this.draftState = 'failed';
      if (error instanceof ServerError && error.status === 409) {
        this.otherDraft = draftIn(error.body);
        this.error = this.otherDraft ? null : error.message;
      } else {
        this.fail(error);
      }
    }
    this.changed();
  }

  /** Go on with the draft of another window, or put this one in its place. */
  async settleDraft(which: 'mine' | 'theirs'): Promise<void> {
    const other = this.otherDraft;
    if (!other) {
      return;
    }
    this.otherDraft = null;
    this.revision = other.revision ?? null;
    if (which === 'theirs') {
      this.push(fromSegments(other.segments, this.size), 'draft of the other window');
      this.base = other.base;
    }
    await this.keep();
  }

  /**
   * Save the findings as the image's label.
   *
   * @param asNew whether the label before is kept beside it
   * @param sure whether an empty label is meant
   */
  async save(asNew = false, sure = false): Promise<void> {
    const image = this.image;
    if (!image) {
      return;
    }
    this.asksEmpty = sure || this.findings.some((each) => each.planes.size) ? null : { asNew };
    if (this.asksEmpty) {
      this.changed();
      return;
    }
    if (this.adjudication) {
      await this.adjudicate({ method: 'drawn', segments: toSegments(this.findings) });
      return;
    }
    clearTimeout(this.timer);
    this.error = this.note = null;
    const saved = this.findings;
    try {
      const answer = await this.api.save(image.image, { segments: toSegments(saved), base: this.base, as_new: asNew });
      this.base = answer.version;
      this.savedBy = answer.by ?? '';
      this.theirs = null;
      this.revision = null;
      // a draft that stays is shown again, and harms nothing else
      await this.api.dropDraft(image.image).catch((error: unknown) => this.fail(error));
      const size = saved.filter((each) => each.planes.size).length;
      this.note = size
        ? `Saved${asNew ? ' as a new label' : ''}: ${size} finding${size > 1 ? 's' : ''}, read back by the server.`
        : 'Saved: this image has none of these findings.';
      if (this.withReport) {
        try {
          await this.api.storeReport(image.image);
          this.note += ' Its measurements are in the PACS as a structured report.';
        } catch (error) {
          const why = error instanceof Error ? error.message : String(error);
          this.fail(new Error(`The label is saved, its measurements are not stored in the PACS: ${why}`));
        }
      }
      if (this.findings === saved) {
        this.draftState = 'none';
        this.keptAt = null;
      }
      void this.refreshState();
    } catch (error) {
      const theirs = error instanceof ServerError && error.status === 409 ? savedIn(error.body) : null;
      if (theirs) {
        this.theirs = { findings: fromSegments(theirs.segments, this.size), saved: theirs };
      } else {
        if (error instanceof ServerError && error.status === 409) {
          // the label that this work began with is gone; saved again, this is the first one
          this.base = null;
        }
        this.fail(error);
      }
    }
    this.changed();
  }

  /** Settle a conflict: keep mine in the place of theirs, go on with theirs, or save mine beside theirs. */
  async settle(which: 'mine' | 'theirs' | 'both'): Promise<void> {
    const theirs = this.theirs;
    if (!theirs) {
      return;
    }
    this.theirs = null;
    this.base = theirs.saved.version;
    if (which !== 'theirs') {
      await this.save(which === 'both');
    } else {
      this.push(theirs.findings, 'label of the other');
    }
  }

  /** Make the consensus of the readers' labels, and show it. */
  async adjudicate(consensus: Consensus): Promise<void> {
    const { image, adjudication } = this;
    if (!image || !adjudication) {
      return;
    }
    clearTimeout(this.timer);
    this.error = this.note = null;
    this.asksEmpty = null;
    try {
      await this.api.adjudicate(image.image, consensus, seen(adjudication));
      await this.api.dropDraft(image.image).catch((error: unknown) => this.fail(error));
      if (this.image !== image) {
        return;
      }
      await this.open(image, this.plane ?? -1);
      this.note = 'The consensus is saved; it is the label of this image from now on.';
      void this.refreshState();
    } catch (error) {
      this.fail(error);
      if (error instanceof ServerError && error.status === 409) {
        // a reader has saved meanwhile
        const several = await this.api.toAdjudicate(image.image).catch(() => null);
        if (several && this.image === image) {
          this.adjudication = readingsOf(several, this.size);
        }
      }
    }
    this.changed();
  }

  showReading(reader: string, visible: boolean): void {
    this.adjudication = this.adjudication && withVisible(this.adjudication, reader, visible);
    this.changed();
  }

  /** Put a copy of a reader's label among the findings, in the place of what is there. */
  copyReading(reader: string): void {
    const reading = this.adjudication?.readings.find((each) => each.reader === reader);
    if (reading) {
      this.push(fromSegments([...reading.segments], this.size), `the label of ${reading.shown}`);
      this.active = this.findings[0]?.id ?? null;
      this.reveal();
      this.changed();
    }
  }

  async review(verdict: 'approved' | 'rejected', reason = ''): Promise<void> {
    if (!this.image) {
      return;
    }
    try {
      await this.api.review(this.image.image, verdict, reason);
      this.note = verdict === 'approved' ? 'The label is approved.' : 'The label is rejected and is offered again.';
      this.error = null;
      void this.refreshState();
    } catch (error) {
      this.fail(error);
    }
    this.changed();
  }

  /** Why this image was offered; null where it was chosen by hand. */
  get sampleReason(): string | null {
    return this.storage.getItem(`${REASON_KEY}.${this.image?.image ?? ''}`);
  }

  /** Open the image that the server offers next, by its first strategy or another one. */
  async goNext(strategy = Object.keys(this.info?.strategies ?? {})[0] ?? 'combined'): Promise<void> {
    this.error = null;
    await this.flush();
    try {
      const sample = await this.api.next(strategy);
      if (!sample.id || !sample.StudyInstanceUID) {
        this.note = `No image is left to be ${strategy === ADJUDICATION ? 'adjudicated' : 'labelled'}.`;
        this.changed();
        return;
      }
      this.storage.setItem(`${REASON_KEY}.${sample.id}`, REASONS[sample.why ?? ''] ?? `Chosen by the strategy "${strategy}".`);
      this.dispatchEvent(new CustomEvent('open', { detail: sample }));
    } catch (error) {
      this.fail(error);
      this.changed();
    }
  }

  private remember(text: string): void {
    const recent = [text, ...this.recent.filter((each) => each !== text)].slice(0, MOST_RECENT);
    this.storage.setItem(RECENT_KEY, JSON.stringify(recent));
    this.storage.setItem(LAST_KEY, text);
  }

  private wentDown(message: string): void {
    if (!this.down) {
      setTimeout(() => void this.look(), LOOK_AGAIN);
    }
    this.down = message;
  }

  private async look(): Promise<void> {
    if (!(await this.api.isUp())) {
      setTimeout(() => void this.look(), LOOK_AGAIN);
      return;
    }
    this.down = null;
    this.note = 'The server answers again.';
    this.measureSoon();
    this.changed();
    await this.flush();
  }
}

/** Return the version of a network that runs: the one that is served, else the newest that could not be validated. */
function served(known: Networks[string] | undefined): Network | undefined {
  const { current, networks } = known ?? { current: null, networks: [] };
  const published = networks.find((each) => each.version === current);
  return published ?? networks.findLast((each) => each.status === 'unvalidated');
}

/** Return what a network is called: "network version 2", or "lungs (network version 2)". */
export const called = ({ name, version }: Pick<Network, 'name' | 'version'>): string =>
  name === 'network' ? `network version ${version}` : `${name} (network version ${version})`;

function reviewed(review: Review | null | undefined): string {
  return review ? `; a reviewer has ${review.verdict} it${review.reason ? `: ${review.reason}` : ''}` : '';
}

const isBefore = (one: string, other: string): boolean => new Date(one).getTime() < new Date(other).getTime();

export function planeOf(image: ImageInfo, shown: Shown): number {
  return image.planes.findIndex((plane) => plane.sop === shown.instance && plane.frame === shown.frame);
}

function evidenceOf(name: string, target: TargetAnswer | undefined, answer: Answer): Evidence | null {
  if (!target) {
    return null;
  }
  const maps = answer.maps?.[name];
  const url = (kind: MapKind): string | null => maps?.[kind] ?? null;
  return {
    presence: target.presence_score ?? null,
    threshold: target.presence_threshold ?? null,
    reason: target.reason ?? '',
    doubt: target.doubt ?? '',
    network: answer.params.network ? called(answer.params.network) : null,
    uncertaintyScore: target.uncertainty_score ?? null,
    mapPlanes: maps?.planes ?? null,
    saliency: url('saliency'),
    uncertainty: url('uncertainty'),
  };
}

function draftIn(body: unknown): Draft | null {
  const told = body as { draft?: Draft; theirs?: Draft } | null;
  const found = told?.theirs ?? told?.draft;
  return found && Array.isArray(found.segments) ? found : null;
}

function savedIn(body: unknown): Saved | null {
  const found = (body as { theirs?: Saved } | null)?.theirs;
  return found && Array.isArray(found.segments) ? found : null;
}
