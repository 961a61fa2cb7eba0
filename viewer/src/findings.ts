/**
 * Findings of one image and the history of their changes. Findings are never changed, but replaced, so that a step back
 * is the list as it was.
 */
import { fromHex, hex, nextColour, type Colour } from './colours';
import { fits, type Runs } from './runs';

export type Source = 'text' | 'network' | 'clicks' | 'hand';

/** What the server said of a target. */
export interface Evidence {
  presence: number | null;
  threshold: number | null;
  /** Why the mask is empty, or what was found. */
  reason: string;
  doubt: string;
  /** The network that has made the mask, such as "network version 2"; null where a text has. */
  network: string | null;
  /** Expected lack of Dice, by the network. */
  uncertaintyScore: number | null;
  /** Planes that have maps; null where all do. */
  mapPlanes: readonly number[] | null;
  saliency: string | null;
  uncertainty: string | null;
}

export interface Finding {
  readonly id: number;
  readonly name: string;
  readonly colour: Colour;
  readonly source: Source;
  /** Whether someone has changed it since a model answered. */
  readonly edited: boolean;
  readonly visible: boolean;
  readonly planes: ReadonlyMap<number, Runs>;
  readonly evidence: Evidence | null;
}

/** A finding as drafts, labels and answers of the server have it. */
export interface Segment {
  name: string;
  colour?: string;
  source?: Source;
  edited?: boolean;
  planes: { plane: number; runs: Runs }[];
  /** Of drafts alone. */
  evidence?: KeptEvidence | null;
}

/** What a draft keeps of the evidence; maps are on the server for a short time only. */
export type KeptEvidence = Pick<Evidence, 'presence' | 'threshold' | 'reason' | 'doubt'> & {
  network?: string | null;
  uncertainty?: number | null;
};

export type Findings = readonly Finding[];

let lastId = 0;

export function planesOf(segment: Segment, size: number): Map<number, Runs> {
  const planes = new Map<number, Runs>();
  for (const { plane, runs } of segment.planes) {
    if (!fits(runs, size)) {
      throw new Error(`The mask of "${segment.name}" on plane ${plane} does not fit on the image.`);
    }
    if (runs.length) {
      planes.set(plane, runs);
    }
  }
  return planes;
}

export function makeFinding(
  findings: Findings,
  given: Pick<Finding, 'name' | 'source' | 'planes'> & Partial<Pick<Finding, 'colour' | 'evidence' | 'edited'>>,
): Finding {
  lastId += 1;
  return {
    id: lastId,
    name: given.name,
    colour: given.colour ?? nextColour(findings.map((each) => each.colour)),
    source: given.source,
    edited: given.edited ?? false,
    visible: true,
    planes: given.planes,
    evidence: given.evidence ?? null,
  };
}

export const replace = (findings: Findings, id: number, change: Partial<Omit<Finding, 'id'>>): Findings =>
  findings.map((each) => (each.id === id ? { ...each, ...change } : each));

export function withPlane(finding: Finding, plane: number, runs: Runs): Finding {
  const planes = new Map(finding.planes);
  if (runs.length) {
    planes.set(plane, runs);
  } else {
    planes.delete(plane);
  }
  return { ...finding, planes };
}

/** Return a name that no finding has: "lungs", "lungs (2)" and so on. */
export function freeName(findings: Findings, name: string): string {
  const taken = new Set(findings.map((each) => each.name));
  let candidate = name;
  for (let k = 2; taken.has(candidate); k++) {
    candidate = `${name} (${k})`;
  }
  return candidate;
}

/**
 * Put a model's answer for a target among the findings.
 *
 * It takes the place of the same target's earlier answer. What somebody has drawn or corrected stays: then the answer
 * is a finding beside it. All others stay.
 */
export function withAnswer(
  findings: Findings,
  given: Pick<Finding, 'name' | 'source' | 'planes' | 'evidence'>,
): { findings: Findings; id: number } {
  const before = findings.find((each) => each.name === given.name && !each.edited && each.source !== 'hand');
  if (before) {
    return { findings: replace(findings, before.id, { ...given, visible: true }), id: before.id };
  }
  const made = makeFinding(findings, { ...given, name: freeName(findings, given.name) });
  return { findings: [...findings, made], id: made.id };
}

export function toSegments(findings: Findings): Segment[] {
  return findings.map((each) => ({
    name: each.name,
    colour: hex(each.colour),
    source: each.source,
    edited: each.edited,
    planes: [...each.planes].sort((a, b) => a[0] - b[0]).map(([plane, runs]) => ({ plane, runs })),
  }));
}

/** Return findings as a draft has them: with what the server said of them. */
export function toDraft(findings: Findings): Segment[] {
  return toSegments(findings).map((segment, place) => {
    const evidence = findings[place]?.evidence;
    if (!evidence) {
      return segment;
    }
    const { presence, threshold, reason, doubt, network, uncertaintyScore } = evidence;
    return { ...segment, evidence: { presence, threshold, reason, doubt, network, uncertainty: uncertaintyScore } };
  });
}

export function fromSegments(segments: readonly Segment[], size: number): Findings {
  let findings: Findings = [];
  for (const segment of segments) {
    const colour = fromHex(segment.colour);
    const made = makeFinding(findings, {
      name: segment.name,
      source: segment.source ?? 'hand',
      edited: segment.edited ?? true,
      planes: planesOf(segment, size),
      evidence: segment.evidence ? fromKept(segment.evidence) : null,
      ...(colour ? { colour } : {}),
    });
    findings = [...findings, made];
  }
  return findings;
}

function fromKept({ presence, threshold, reason, doubt, network, uncertainty }: KeptEvidence): Evidence {
  const told = { presence, threshold, reason, doubt, network: network ?? null, uncertaintyScore: uncertainty ?? null };
  return { ...told, mapPlanes: null, saliency: null, uncertainty: null };
}

/** Steps back and forth between lists of findings. */
export class History {
  private readonly states: { findings: Findings; what: string }[];
  private at = 0;

  constructor(
    first: Findings = [],
    // as many as the viewer's own history has, and the list before them
    private readonly most = 51,
  ) {
    this.states = [{ findings: first, what: '' }];
  }

  get findings(): Findings {
    return this.states[this.at]?.findings ?? [];
  }

  /** What a step back takes back; undefined where there is none. */
  get undoable(): string | undefined {
    return this.at > 0 ? this.states[this.at]?.what : undefined;
  }

  get redoable(): string | undefined {
    return this.states[this.at + 1]?.what;
  }

  push(findings: Findings, what: string): void {
    this.states.splice(this.at + 1);
    this.states.push({ findings, what });
    if (this.states.length > this.most) {
      this.states.shift();
    }
    this.at = this.states.length - 1;
  }

  /** Change the present list without a step, as for what is shown. */
  amend(findings: Findings): void {
    const present = this.states[this.at];
    if (present) {
      present.findings = findings;
    }
  }

  undo(): boolean {
    if (this.at === 0) {
      return false;
    }
    this.at -= 1;
    return true;
  }

  redo(): boolean {
    if (this.at + 1 >= this.states.length) {
      return false;
    }
    this.at += 1;
    return true;
  }
}
