import { IApi, ILogPage } from '../api';

/** A line of a log; `number` is its place in the whole log. */
export interface ILine {
  number: number;
  rank: number;
  text: string;
}

/** What has been fetched of a log, and where to go on. */
export interface ILog {
  lines: readonly ILine[];
  next: number;
  dropped: number;
  /** There is another page already. */
  more: boolean;
}

export const EMPTY_LOG: ILog = { lines: [], next: 0, dropped: 0, more: false };

/** Lines that are kept in the page: what a person may scroll through. */
const KEPT = 20_000;

/** The log with one more page. */
export function added(log: ILog, page: ILogPage): ILog {
  const fresh = page.lines.map((text, index) => ({
    text,
    rank: page.ranks[index] ?? 0,
    number: page.numbers[index] ?? 0
  }));
  const lines = fresh.length > 0 ? [...log.lines, ...fresh].slice(-KEPT) : log.lines;
  return {
    lines,
    next: page.next,
    dropped: page.dropped,
    more: !page.complete && page.next > log.next
  };
}

/** Reads a log from its begin to where it is now, and from there on. */
export class LogReader {
  constructor(
    private _api: Pick<IApi, 'runLog'>,
    private _run: string,
    private _rank: number | null,
    private _search: string
  ) {}

  /** All that has been read, with what is new. */
  async read(): Promise<ILog> {
    do {
      const page = await this._api.runLog(this._run, {
        after: this._log.next,
        ...(this._rank === null ? {} : { rank: this._rank }),
        ...(this._search === '' ? {} : { search: this._search })
      });
      this._log = added(this._log, page);
    } while (this._log.more);
    return this._log;
  }

  private _log = EMPTY_LOG;
}

/** A line in pieces, those that were searched for marked; upper and lower case are the same. */
export function pieces(text: string, search: string): { text: string; found: boolean }[] {
  if (search === '') {
    return [{ text, found: false }];
  }
  const parts: { text: string; found: boolean }[] = [];
  const [low, wanted] = [text.toLowerCase(), search.toLowerCase()];
  // In some scripts lower case is longer; then places in it are not places in the text.
  if (low.length !== text.length) {
    return [{ text, found: low.includes(wanted) }];
  }
  let from = 0;
  for (let at = low.indexOf(wanted); at >= 0; at = low.indexOf(wanted, from)) {
    parts.push({ text: text.slice(from, at), found: false });
    parts.push({ text: text.slice(at, at + wanted.length), found: true });
    from = at + wanted.length;
  }
  parts.push({ text: text.slice(from), found: false });
  return parts.filter(part => part.text !== '');
}
