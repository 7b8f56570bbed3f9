import * as React from 'react';

import { IApi, IFrame, IRankStacks } from '../api';
import { useServices } from '../components/services';
import { IRun } from '../schema';
import { useAnswer } from './poll';

/** What every rank does now, the user's own code marked; of a rank that raised, where. */
export function Stacks(props: { api: IApi; run: IRun }): React.ReactElement {
  const { trans } = useServices();
  const { api, run } = props;
  const question = React.useCallback(() => api.runStacks(run.id), [api, run.id]);
  const { value, trouble, again } = useAnswer(question, false);
  return (
    <>
      <div className="aios-Tools">
        <button className="jp-mod-styled" onClick={again}>
          {trans.__('Look again')}
        </button>
        <span className="aios-Muted">
          {trans.__('The innermost call is on top; your own code is marked.')}
        </span>
      </div>
      {trouble && <p className="aios-Reason">{trouble}</p>}
      {!value && !trouble && <p className="aios-Muted">{trans.__('Looking…')}</p>}
      {value?.map(rank => (
        <Rank key={rank.rank} stacks={rank} />
      ))}
    </>
  );
}

function Rank(props: { stacks: IRankStacks }): React.ReactElement {
  const { trans } = useServices();
  const { rank, pid, threads, failure, note } = props.stacks;
  return (
    <section className="aios-Stacks" data-rank={rank}>
      <h3>
        {pid > 0 ? trans.__('Rank %1 (pid %2)', rank, pid) : trans.__('Rank %1', rank)}
      </h3>
      {note && <p className="aios-Muted">{note}</p>}
      {threads.map((thread, index) => (
        <div key={index}>
          <h4>{thread.name}</h4>
          <ol>
            {thread.frames.map((frame, place) => (
              <Call frame={frame} key={place} />
            ))}
          </ol>
        </div>
      ))}
      {failure && <pre tabIndex={0}>{failure}</pre>}
    </section>
  );
}

function Call(props: { frame: IFrame }): React.ReactElement {
  const { frame } = props;
  return (
    <li data-users={frame.users || undefined}>
      <code>{frame.function}</code>{' '}
      <span className="aios-Muted">
        {frame.file}:{frame.line}
      </span>
      {frame.source && <pre>{frame.source}</pre>}
    </li>
  );
}
