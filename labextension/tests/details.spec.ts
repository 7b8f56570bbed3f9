import { ILogPage } from '../src/api';
import { added, EMPTY_LOG, LogReader, pieces } from '../src/details/loglines';
import { smoothed } from '../src/details/smooth';
import { curvesOf, placeOf } from '../src/curves';
import { aligned } from '../src/plot';
import { byName, IVersion, versionBefore } from '../src/registry';

function page(from: number, count: number, rest: Partial<ILogPage> = {}): ILogPage {
  const numbers = Array.from({ length: count }, (_, index) => from + index);
  return {
    lines: numbers.map(number => `line ${number}`),
    ranks: numbers.map(() => 0),
    numbers,
    next: from + count,
    dropped: 0,
    complete: false,
    ...rest
  };
}

describe('a log', () => {
  it('grows by pages, and asks on while there is more', () => {
    const first = added(EMPTY_LOG, page(0, 2));
    expect(first.more).toBe(true);
    const same = added(first, page(2, 0));
    expect(same.more).toBe(false);
    expect(same.lines).toBe(first.lines);
    expect(added(same, page(2, 1, { complete: true })).more).toBe(false);
  });

  it('is read from its begin to now, then from there', async () => {
    const asked: object[] = [];
    const pages = [page(0, 2), page(2, 1), page(3, 0), page(3, 1), page(4, 0)];
    const runLog = (_: string, query: object) => {
      asked.push(query);
      return Promise.resolve(pages[asked.length - 1] as ILogPage);
    };
    const reader = new LogReader({ runLog }, 'r1', 1, 'loss');
    expect((await reader.read()).lines.length).toBe(3);
    expect((await reader.read()).lines.length).toBe(4);
    expect(asked[3]).toEqual({ after: 3, rank: 1, search: 'loss' });
  });

  it('marks what was searched for, in any case', () => {
    expect(pieces('Loss: loss', 'LOSS')).toEqual([
      { text: 'Loss', found: true },
      { text: ': ', found: false },
      { text: 'loss', found: true }
    ]);
    expect(pieces('text', '')).toEqual([{ text: 'text', found: false }]);
    expect(pieces('İx', 'x').map(piece => piece.text)).toEqual(['İx']);
  });
});

describe('smoothed', () => {
  it('starts at the first value, follows, and keeps gaps', () => {
    const values = smoothed([4, null, 4, NaN, 0], 0.5);
    expect(values[0]).toBeCloseTo(4);
    expect(values[1]).toBeNull();
    expect(values[2]).toBeCloseTo(4);
    expect(values[3]).toBeNull();
    expect(values[4]).toBeGreaterThan(0);
    expect(values[4]).toBeLessThan(4);
  });
});

describe('aligned', () => {
  const line = (x: number[], y: (number | null)[]) => ({
    label: '',
    color: '',
    course: { x, y }
  });

  it('puts lines of different x over one, with gaps', () => {
    expect(aligned([line([1, 2], [5, 6]), line([2, 3], [7, 8])])).toEqual([
      [1, 2, 3],
      [5, 6, null],
      [null, 7, 8]
    ]);
  });

  it('leaves out what cannot be drawn', () => {
    expect(aligned([line([1, 2, 3], [NaN, 0, 1])], true)).toEqual([
      [1, 2, 3],
      [null, null, 1]
    ]);
  });
});

test('the place of a run in its card is found by its id alone, whatever that is', () => {
  expect(placeOf({ run: 'r-1' })).toBe('.aios-card .aios-place[data-run="r-1"]');
  expect(placeOf({ run: 'a"]b' })).toContain('[data-run="a\\"]b"]');
  expect(placeOf({})).toBe('');
  expect(placeOf({ run: 7 })).toBe('');
});

describe('curvesOf', () => {
  it('takes curves, and nothing that only says that it is one', () => {
    const good = { name: 'loss', x: [1, 2], y: [3, null] };
    const bad = [
      null,
      'x',
      { name: 1, x: [], y: [] },
      { ...good, x: [1] },
      { ...good, y: ['<', 2] }
    ];
    expect(curvesOf({ curves: [...bad, good] })).toEqual([good]);
    expect(curvesOf(undefined)).toEqual([]);
    expect(curvesOf({ curves: 'all' })).toEqual([]);
  });
});

describe('models', () => {
  const version = (name: string, number: number, aliases: string[] = [], before = {}) =>
    ({ name, version: number, aliases, before }) as unknown as IVersion;

  it('are versions by name, the newest first', () => {
    const models = byName([
      version('b', 1),
      version('a', 1),
      version('a', 3, ['champion'])
    ]);
    expect(models.map(one => one.name)).toEqual(['a', 'b']);
    expect(models[0]?.versions.map(one => one.version)).toEqual([3, 1]);
    expect(models[0]?.aliases).toEqual({ champion: 3 });
  });

  it('go back to the version that the alias named before, whatever its number', () => {
    const [model] = byName([
      version('a', 1, ['first', 'champion'], { champion: 3 }),
      version('a', 2),
      version('a', 3)
    ]);
    expect(model && versionBefore(model, 'champion')).toBe(3);
    expect(model && versionBefore(model, 'first')).toBeNull();
    expect(model && versionBefore(model, 'unknown')).toBeNull();
  });
});
