/**
 * Labels of several readers that a reviewer makes one of.
 */
import { nextColour, type Colour } from './colours';
import { planesOf, type Segment } from './findings';
import type { Runs } from './runs';

/** An image whose readers' labels wait for a consensus, as the server tells a reviewer of it. */
export interface ToAdjudicate {
  /** Of the two readers who agree least; null where they looked for different things. */
  dice: number | null;
  readers: { reader: string; version: string; saved: string | null; segments: Segment[] }[];
  structures: Record<string, { pairs: { readers: [string, string]; dice: number }[] }>;
}

export type Consensus =
  | { method: 'staple' | 'majority' }
  | { method: 'reader'; reader: string }
  | { method: 'drawn'; segments: Segment[] };

export interface ReaderMask {
  readonly name: string;
  readonly planes: ReadonlyMap<number, Runs>;
}

/** One reader's label, to look at. */
export interface Reading {
  readonly reader: string;
  /** What the reader is called here. */
  readonly shown: string;
  readonly colour: Colour;
  readonly visible: boolean;
  readonly masks: readonly ReaderMask[];
  readonly segments: readonly Segment[];
}

export interface Adjudication {
  readonly told: ToAdjudicate;
  readonly readings: readonly Reading[];
}

/**
 * @param size number of pixels of a plane
 */
export function readingsOf(told: ToAdjudicate, size: number): Adjudication {
  const readings: Reading[] = [];
  for (const { reader, segments } of told.readers) {
    readings.push({
      reader,
      // without log-in a browser's number says nothing to people
      shown: reader.startsWith('browser-') ? `reader ${readings.length + 1}` : reader,
      colour: nextColour(readings.map((each) => each.colour)),
      visible: true,
      masks: segments.map((segment) => ({ name: segment.name, planes: planesOf(segment, size) })),
      segments,
    });
  }
  return { told, readings };
}

/** Return the versions that were looked at, by the reader. */
export const seen = ({ told }: Adjudication): Record<string, string> =>
  Object.fromEntries(told.readers.map((each) => [each.reader, each.version]));

export const withVisible = (adjudication: Adjudication, reader: string, visible: boolean): Adjudication => ({
  ...adjudication,
  readings: adjudication.readings.map((each) => (each.reader === reader ? { ...each, visible } : each)),
});

const figure = (dice: number | null): string => (dice === null ? 'no structure in common' : `Dice ${dice.toFixed(2)}`);
const COUNTS = ['No', 'One', 'Two', 'Three', 'Four', 'Five'];

/** Return how well the readers agree, as a sentence's beginning: "Two readers disagree: Dice 0.71". */
export function agreementInWords({ told, readings }: Adjudication): string {
  const count = COUNTS[readings.length] ?? String(readings.length);
  return `${count} readers ${told.dice === 1 ? 'agree' : 'disagree'}: ${figure(told.dice)}`;
}

/** Return the least agreement on each structure, the worst first: "heart 0.71". */
export function structuresInWords({ told }: Adjudication): string[] {
  return Object.entries(told.structures)
    .map(([name, { pairs }]) => ({ name, dice: Math.min(...pairs.map((pair) => pair.dice)) }))
    .sort((one, other) => one.dice - other.dice)
    .map(({ name, dice }) => `${name} ${dice.toFixed(2)}`);
}
