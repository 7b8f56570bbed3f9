import { useVirtualizer } from '@tanstack/react-virtual';
import * as React from 'react';

import { IApi } from '../api';
import { useServices } from '../components/services';
import { IRun, isLive } from '../schema';
import { useAnswer } from './poll';
import { EMPTY_LOG, ILine, LogReader, pieces } from './loglines';

/** Milliseconds after the last key until a search is made. */
const TYPING = 300;

/** The log of a run: of one rank or all, searched, followed. */
export function LogView(props: { api: IApi; run: IRun }): React.ReactElement {
  const { trans } = useServices();
  const { api, run } = props;
  const [rank, setRank] = React.useState('');
  const [typed, setTyped] = React.useState('');
  const [search, setSearch] = React.useState('');
  const [follow, setFollow] = React.useState(true);
  React.useEffect(() => {
    const timer = setTimeout(() => setSearch(typed.trim()), TYPING);
    return () => clearTimeout(timer);
  }, [typed]);
  const question = React.useMemo(() => {
    const reader = new LogReader(api, run.id, rank === '' ? null : Number(rank), search);
    return () => reader.read();
  }, [api, run.id, rank, search]);
  const { value, trouble } = useAnswer(question, isLive(run));
  const log = value ?? EMPTY_LOG;
  const empty = search
    ? trans.__('No line has that in it.')
    : isLive(run)
      ? trans.__('Nothing has been printed yet.')
      : trans.__('Nothing has been printed.');
  return (
    <div className="aios-Log">
      <div className="aios-Tools">
        <label>
          {trans.__('Rank')}{' '}
          <select onChange={event => setRank(event.currentTarget.value)} value={rank}>
            <option value="">{trans.__('all')}</option>
            {Array.from({ length: run.world_size }, (_, number) => (
              <option key={number} value={number}>
                {number}
              </option>
            ))}
          </select>
        </label>
        <input
          aria-label={trans.__('Search the log')}
          onChange={event => setTyped(event.currentTarget.value)}
          placeholder={trans.__('Search')}
          type="search"
          value={typed}
        />
        <label>
          <input
            checked={follow}
            onChange={event => setFollow(event.currentTarget.checked)}
            type="checkbox"
          />{' '}
          {trans.__('follow')}
        </label>
        <span className="aios-Muted" role="status">
          {trans._n('%1 line', '%1 lines', log.lines.length)}
          {log.dropped > 0 &&
            ` · ${trans.__('the first %1 are not kept here', log.dropped)}`}
        </span>
      </div>
      {trouble && <p className="aios-Reason">{trouble}</p>}
      {value && log.lines.length === 0 ? (
        <p className="aios-Muted aios-Log-empty">{empty}</p>
      ) : (
        <LogLines
          lines={log.lines}
          search={search}
          ranks={run.world_size > 1 && rank === ''}
          follow={follow}
          onFollow={setFollow}
        />
      )}
    </div>
  );
}

function LogLines(props: {
  lines: readonly ILine[];
  search: string;
  ranks: boolean;
  follow: boolean;
  onFollow: (follow: boolean) => void;
}): React.ReactElement {
  const { trans } = useServices();
  const { lines, follow, onFollow } = props;
  const box = React.useRef<HTMLDivElement>(null);
  const virtual = useVirtualizer({
    count: lines.length,
    getScrollElement: () => box.current,
    getItemKey: index => lines[index]?.number ?? index,
    estimateSize: () => 18,
    overscan: 20,
    useFlushSync: false
  });
  const last = lines[lines.length - 1]?.number;
  const height = virtual.getTotalSize();
  React.useEffect(() => {
    if (follow && box.current) {
      box.current.scrollTop = box.current.scrollHeight;
    }
  }, [follow, last, height]);
  // Who scrolls up wants to read; who goes to the end wants to see what comes.
  const onWheel = (event: React.WheelEvent) => event.deltaY < 0 && onFollow(false);
  const onScroll = () => {
    const { scrollTop = 0, clientHeight = 0, scrollHeight = 0 } = box.current ?? {};
    if (scrollTop + clientHeight >= scrollHeight - 4 && !follow) {
      onFollow(true);
    }
  };
  const onKey = (event: React.KeyboardEvent) =>
    ['PageUp', 'ArrowUp', 'Home'].includes(event.key) && onFollow(false);
  return (
    <div
      aria-label={trans.__('Log')}
      className="aios-Log-lines"
      onKeyDown={onKey}
      onScroll={onScroll}
      onWheel={onWheel}
      ref={box}
      role="log"
      aria-live="off"
      tabIndex={0}
    >
      <div style={{ height, position: 'relative' }}>
        {virtual.getVirtualItems().map(item => {
          const line = lines[item.index] as ILine;
          return (
            <div
              className="aios-Log-line"
              data-index={item.index}
              key={item.key}
              ref={virtual.measureElement}
              style={{ transform: `translateY(${item.start}px)` }}
            >
              {props.ranks && <span className="aios-Log-rank">[{line.rank}]</span>}
              <span>
                {pieces(line.text, props.search).map((piece, index) =>
                  piece.found ? (
                    <mark key={index}>{piece.text}</mark>
                  ) : (
                    <React.Fragment key={index}>{piece.text}</React.Fragment>
                  )
                )}
              </span>
            </div>
          );
        })}
      </div>
    </div>
  );
}
