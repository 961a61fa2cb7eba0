import { describe, expect, it } from 'vitest';
import { fromHex, hex, nextColour, type Colour } from '../src/colours';
import {
  fromSegments,
  History,
  makeFinding,
  replace,
  toDraft,
  toSegments,
  withAnswer,
  withPlane,
  type Findings,
} from '../src/findings';

const answer = (name: string, runs: number[]) => ({
  name,
  source: 'text' as const,
  planes: new Map(runs.length ? [[0, runs]] : []),
  evidence: null,
});

describe('a new answer', () => {
  const drawn = makeFinding([], { name: 'cyst', source: 'hand', planes: new Map([[0, [4, 2]]]), edited: true });
  const begin: Findings = [drawn];

  it('leaves the other findings as they are', () => {
    const { findings } = withAnswer(begin, answer('lungs', [0, 3]));
    expect(findings[0]).toBe(drawn);
    const absent = withAnswer(findings, answer('heart', [])).findings;
    expect(absent.slice(0, 2)).toEqual(findings);
    expect(absent[2]?.planes.size).toBe(0);
  });

  it('takes the place of the answer before, in its colour', () => {
    const first = withAnswer(begin, answer('lungs', [0, 3]));
    const second = withAnswer(first.findings, answer('lungs', [0, 5]));
    expect(second.id).toBe(first.id);
    expect(second.findings).toHaveLength(2);
    expect(second.findings[1]).toMatchObject({ colour: first.findings[1]?.colour });
    expect(second.findings[1]?.planes.get(0)).toEqual([0, 5]);
  });

  it('stands beside what somebody has drawn or corrected under its name', () => {
    expect(withAnswer(begin, answer('cyst', [0, 3])).findings.map((each) => each.name)).toEqual(['cyst', 'cyst (2)']);
    const first = withAnswer(begin, answer('lungs', [0, 3]));
    const corrected = replace(first.findings, first.id, { edited: true });
    const { findings } = withAnswer(corrected, answer('lungs', []));
    expect(findings.find((each) => each.id === first.id)?.planes.get(0)).toEqual([0, 3]);
  });
});

describe('history', () => {
  it('goes back and forth over answers and strokes alike, and a change ends the way forth', () => {
    const history = new History();
    const first = withAnswer(history.findings, answer('lungs', [0, 3]));
    history.push(first.findings, 'lungs');
    const [lungs] = first.findings;
    if (!lungs) {
      throw new Error('no finding');
    }
    history.push([withPlane(lungs, 0, [0, 2])], 'eraser');
    expect(history.undoable).toBe('eraser');
    history.undo();
    expect(history.findings).toBe(first.findings);
    history.undo();
    expect(history.findings).toEqual([]);
    expect(history.undo()).toBe(false);
    history.redo();
    expect(history.findings).toBe(first.findings);
    history.push([], 'clear');
    expect(history.redo()).toBe(false);
  });

  it('holds a bounded number of steps', () => {
    const history = new History([], 5);
    for (let k = 0; k < 20; k++) {
      history.push([], String(k));
    }
    let steps = 0;
    while (history.undo()) {
      steps += 1;
    }
    expect(steps).toBe(4);
  });
});

describe('findings on the server', () => {
  it('come back with names, colours and masks', () => {
    const first = withAnswer([], answer('left lung', [1, 3])).findings;
    const second = withAnswer(first, answer('odd "thing"; 2', [])).findings;
    const back = fromSegments(JSON.parse(JSON.stringify(toSegments(second))) as ReturnType<typeof toSegments>, 12);
    expect(back.map(({ name, colour, source, planes }) => ({ name, colour, source, planes }))).toEqual(
      second.map(({ name, colour, source, planes }) => ({ name, colour, source, planes })),
    );
  });

  it('keep in drafts what the server said of them, without maps that it soon forgets', () => {
    const said = {
      ...{ presence: 0.02, threshold: 0.5, reason: 'not found', doubt: '' },
      ...{ network: 'network version 2', uncertaintyScore: 0.25 },
    };
    const evidence = { ...said, mapPlanes: [0], saliency: '/a', uncertainty: null };
    const { findings } = withAnswer([], { ...answer('heart', []), evidence });
    expect(toSegments(findings)[0]).not.toHaveProperty('evidence');
    const back = fromSegments(JSON.parse(JSON.stringify(toDraft(findings))) as ReturnType<typeof toDraft>, 12);
    expect(back[0]?.evidence).toEqual({ ...said, mapPlanes: null, saliency: null, uncertainty: null });
  });

  it('are refused where they do not fit on the image', () => {
    expect(() => fromSegments([{ name: 'lungs', planes: [{ plane: 0, runs: [0, 13] }] }], 12)).toThrow(/lungs/);
  });
});

describe('colours', () => {
  it('of thirty findings differ, and come back from text', () => {
    const used: Colour[] = [];
    for (let k = 0; k < 30; k++) {
      used.push(nextColour(used));
    }
    expect(new Set(used.map(hex)).size).toBe(30);
    used.forEach((colour) => expect(fromHex(hex(colour))).toEqual(colour));
    expect(fromHex('red')).toBeUndefined();
  });
});
