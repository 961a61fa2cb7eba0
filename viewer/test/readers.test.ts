import { describe, expect, it } from 'vitest';
import { agreementInWords, readingsOf, seen, structuresInWords, withVisible, type ToAdjudicate } from '../src/readers';

const segment = (name: string, runs: number[]) => ({ name, planes: [{ plane: 1, runs }] });
const TOLD: ToAdjudicate = {
  dice: 0.706,
  readers: [
    { reader: 'ada', version: 'v1', saved: null, segments: [segment('heart', [0, 4])] },
    { reader: `browser-${'0'.repeat(32)}`, version: 'v2', saved: null, segments: [segment('heart', [2, 4])] },
  ],
  structures: {
    'left lung': { pairs: [{ readers: ['ada', 'bob'], dice: 0.93 }] },
    heart: { pairs: [{ readers: ['ada', 'bob'], dice: 0.5 }, { readers: ['ada', 'cyd'], dice: 0.48 }] },
  },
};

describe('the labels of several readers', () => {
  it('have a colour each, and a name that says something', () => {
    const { readings } = readingsOf(TOLD, 20);
    expect(readings.map((each) => each.shown)).toEqual(['ada', 'reader 2']);
    expect(new Set(readings.map((each) => String(each.colour))).size).toBe(2);
    expect(readings[1]?.masks[0]?.planes.get(1)).toEqual([2, 4]);
  });

  it('are refused where they do not fit on the image', () => {
    expect(() => readingsOf(TOLD, 5)).toThrow('heart');
  });

  it('are told with their agreement, the worst structure first', () => {
    const adjudication = readingsOf(TOLD, 20);
    expect(agreementInWords(adjudication)).toBe('Two readers disagree: Dice 0.71');
    expect(structuresInWords(adjudication)).toEqual(['heart 0.48', 'left lung 0.93']);
    expect(agreementInWords(readingsOf({ ...TOLD, dice: 1 }, 20))).toBe('Two readers agree: Dice 1.00');
    expect(agreementInWords(readingsOf({ ...TOLD, dice: null }, 20))).toContain('no structure in common');
  });

  it('are hidden one by one', () => {
    const adjudication = withVisible(readingsOf(TOLD, 20), 'ada', false);
    expect(adjudication.readings.map((each) => each.visible)).toEqual([false, true]);
    expect(seen(adjudication)).toEqual({ ada: 'v1', [`browser-${'0'.repeat(32)}`]: 'v2' });
  });
});
