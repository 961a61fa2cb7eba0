/**
 * The server's routes that the panel uses.
 */
import type { Segment } from './findings';
import type { Measured } from './measure';
import type { Consensus, ToAdjudicate } from './readers';
import type { Runs } from './runs';

/** What the server refused or could not do, as its sentence. */
export class ServerError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly body: unknown = null,
  ) {
    super(message);
  }
}

/** No server answered. */
export class UnreachableError extends Error {}

export interface Plane {
  sop: string;
  frame: number;
}

export interface ImageInfo {
  image: string;
  name: string;
  modality: string | null;
  rows: number;
  columns: number;
  spacing_mm: [number | null, number, number] | null;
  planes: Plane[];
  study?: string;
  series?: string;
  labelled?: unknown;
  lease?: { holder: string; until: string } | null;
  /** Whether a saved label's measurements are stored in the PACS: with each, when asked for, or not at all. */
  reports?: 'always' | 'offered' | null;
}

export interface TargetAnswer {
  name: string;
  label?: number;
  found?: boolean;
  known?: boolean;
  treated_as?: string;
  presence_score?: number | null;
  presence_threshold?: number | null;
  reason?: string;
  note?: string;
  doubt?: string;
  uncertainty_score?: number | null;
  evidence?: Record<string, unknown>;
}

export interface Answer {
  params: {
    sentence?: string;
    targets?: TargetAnswer[];
    network?: { name: string; version: number };
    [key: string]: unknown;
  };
  segments: (Segment & { label?: number })[];
  maps?: Record<string, Partial<Record<MapKind, string | null>> & { planes?: number[] }> | null;
}

export type MapKind = 'saliency' | 'uncertainty';

export type Line =
  | { event: 'progress'; fraction?: number | null; message?: string; seconds_left?: number | null }
  | { event: 'mask'; target: string; plane: number; runs: Runs }
  | ({ event: 'result' } & Answer)
  | { event: 'error'; status: number; detail: string };

export interface Click {
  plane: number;
  x: number;
  y: number;
}

export interface Clicks {
  foreground?: Click[];
  background?: Click[];
  boxes?: { plane: number; x0: number; y0: number; x1: number; y1: number }[];
}

export interface Draft {
  segments: Segment[];
  base: string | null;
  revision?: number | string | null;
  saved_at?: string;
  /** Whether this browser, or who is logged in, has made it. */
  own?: boolean;
  by?: string;
}

export interface Review {
  verdict: 'approved' | 'rejected';
  reason: string;
  by: string;
}

export interface Saved {
  segments: Segment[];
  version: string;
  review?: Review | null;
  by?: string;
  at?: string;
  /** Whether it was made of the labels of several readers. */
  consensus?: boolean;
}

export interface Proposal {
  segments: Segment[];
  /** A network, such as "network version 2", "zero-shot", or "pre-annotation". */
  by: string;
}

export interface State {
  labelled?: number;
  images?: number;
  rounds?: number;
  new_labels?: number;
  retrain_after?: number;
  training?: string | null;
  /** The last round that has ended. */
  last?: { round: number; state: string; network: string | null } | null;
  /** Images that wait for a consensus by this reviewer. */
  to_adjudicate?: number;
  sentence?: string;
  [key: string]: unknown;
}

export interface Suggestion {
  name: string;
  text: string;
  modality: string[];
}

export interface Sample {
  id?: string;
  StudyInstanceUID?: string;
  SeriesInstanceUID?: string;
  why?: string;
  [key: string]: unknown;
}

/** One version of a trained network. */
export interface Network {
  name: string;
  version: number;
  status: 'published' | 'unvalidated' | 'refused';
  reason: string;
  labels: Record<string, number>;
  modality: string | null;
  /** `child` is its mean Dice on `n` validation images. */
  metrics: { verdict?: { child?: number | null; n: number } };
}

export type Networks = Record<string, { current: number | null; networks: Network[] }>;

export interface ServerInfo {
  models: Record<string, { config?: Record<string, unknown> }>;
  strategies: Record<string, unknown>;
}

/** Split a stream of bytes into the JSON objects that its lines are. */
export async function* lines(stream: ReadableStream<Uint8Array>): AsyncGenerator<Line> {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const parts = rest.split('\n');
      rest = done ? '' : (parts.pop() ?? '');
      for (const part of parts) {
        if (part.trim()) {
          yield JSON.parse(part) as Line;
        }
      }
      if (done) {
        return;
      }
    }
  } finally {
    reader.releaseLock();
  }
}

const quoted = encodeURIComponent;

export class Api {
  /** @param root address of the server, with a slash at its end */
  constructor(
    readonly root: string,
    private readonly fetched: typeof fetch = (...given) => fetch(...given),
  ) {}

  image(study: string, series: string, instance: string, frame: number): Promise<ImageInfo> {
    const query = new URLSearchParams({
      StudyInstanceUID: study,
      SeriesInstanceUID: series,
      SOPInstanceUID: instance,
      frame: String(frame),
    });
    return this.json<ImageInfo>('GET', `viewer/api/image?${query.toString()}`);
  }

  async suggestions(text: string, modality: string): Promise<Suggestion[]> {
    const query = new URLSearchParams({ q: text.slice(0, 100), limit: '8', modality });
    return (await this.json<{ targets: Suggestion[] }>('GET', `targets/vocabulary?${query.toString()}`)).targets;
  }

  info(): Promise<ServerInfo> {
    return this.json<ServerInfo>('GET', 'info/');
  }

  networks(): Promise<Networks> {
    return this.json<Networks>('GET', 'networks/');
  }

  async measure(image: string, segments: Segment[]): Promise<Measured[]> {
    const path = `viewer/api/measurements/${quoted(image)}`;
    return (await this.json<{ measurements: Measured[] }>('POST', path, { segments })).measurements;
  }

  /** Return where the measurements of the saved label are, as a file. */
  measurements(image: string, format: 'csv' | 'json'): string {
    return `${this.root}viewer/api/measurements/${quoted(image)}?format=${format}`;
  }

  async storeReport(image: string): Promise<void> {
    await this.send('POST', `viewer/api/labels/${quoted(image)}/report`);
  }

  state(): Promise<State> {
    return this.json<State>('GET', 'viewer/api/state');
  }

  /** Run a model; yields what the server says as it comes. */
  async *infer(model: string, image: string, params: object, request: string): AsyncGenerator<Line> {
    const query = new URLSearchParams({ image, request_id: request });
    const answer = await this.send('POST', `infer/${quoted(model)}?${query.toString()}`, params, {
      Accept: 'application/x-ndjson',
    });
    if (!answer.headers.get('content-type')?.startsWith('application/x-ndjson') || !answer.body) {
      throw new ServerError(answer.status, 'The server did not answer in lines; its version does not fit this viewer.');
    }
    try {
      yield* lines(answer.body);
    } catch (error) {
      throw error instanceof TypeError ? this.unreachable() : error;
    }
  }

  async cancel(request: string): Promise<void> {
    await this.send('DELETE', `requests/${quoted(request)}`);
  }

  draft(image: string): Promise<Draft | null> {
    return this.optional<Draft>(`viewer/api/drafts/${quoted(image)}`);
  }

  keepDraft(image: string, draft: Draft): Promise<Draft> {
    return this.json<Draft>('PUT', `viewer/api/drafts/${quoted(image)}`, draft);
  }

  async dropDraft(image: string): Promise<void> {
    await this.send('DELETE', `viewer/api/drafts/${quoted(image)}`);
  }

  label(image: string): Promise<Saved | null> {
    return this.optional<Saved>(`viewer/api/labels/${quoted(image)}`);
  }

  /** Return the mask of a model that waits for whoever labels an image; null where there is none. */
  proposal(image: string): Promise<Proposal | null> {
    return this.optional<Proposal>(`viewer/api/proposals/${quoted(image)}`);
  }

  save(image: string, label: { segments: Segment[]; base: string | null; as_new: boolean }): Promise<Saved> {
    return this.json<Saved>('PUT', `viewer/api/labels/${quoted(image)}`, label);
  }

  /** Return the labels of an image that this reviewer may make the consensus of; null where there are none. */
  toAdjudicate(image: string): Promise<ToAdjudicate | null> {
    return this.optional<ToAdjudicate>(`viewer/api/readers/${quoted(image)}`);
  }

  async adjudicate(image: string, consensus: Consensus, seen: Record<string, string>): Promise<void> {
    await this.send('PUT', `readers/${quoted(image)}/consensus`, { ...consensus, seen });
  }

  next(strategy: string): Promise<Sample> {
    return this.json<Sample>('POST', `activelearning/${quoted(strategy)}`, {});
  }

  async review(image: string, verdict: 'approved' | 'rejected', reason: string): Promise<void> {
    const query = new URLSearchParams({ image, verdict, ...(reason ? { reason } : {}) });
    await this.send('PUT', `rounds/reviews?${query.toString()}`);
  }

  /** Return whether the server is ready. */
  async isUp(): Promise<boolean> {
    try {
      return (await this.fetched(`${this.root}readyz`, { cache: 'no-store' })).ok;
    } catch {
      return false;
    }
  }

  private async optional<T>(path: string): Promise<T | null> {
    const answer = await this.send('GET', path);
    return answer.status === 204 ? null : ((await answer.json()) as T);
  }

  private async json<T>(method: string, path: string, body?: object): Promise<T> {
    return (await (await this.send(method, path, body)).json()) as T;
  }

  private async send(
    method: string,
    path: string,
    body?: object,
    headers: Record<string, string> = {},
  ): Promise<Response> {
    let answer: Response;
    try {
      answer = await this.fetched(this.root + path, {
        method,
        headers: { ...headers, ...(body ? { 'Content-Type': 'application/json' } : {}) },
        ...(body ? { body: JSON.stringify(body) } : {}),
      });
    } catch {
      throw this.unreachable();
    }
    if (!answer.ok) {
      const told: unknown = await answer.json().catch(() => null);
      throw new ServerError(answer.status, sentence(told) ?? `The server answered ${answer.status}.`, told);
    }
    return answer;
  }

  private unreachable(): UnreachableError {
    return new UnreachableError(`The server ${new URL(this.root, location.href).origin} does not answer.`);
  }
}

function sentence(told: unknown): string | undefined {
  const detail = (told as { detail?: unknown } | null)?.detail;
  return typeof detail === 'string' ? detail : undefined;
}
