import * as React from 'react';

import { IApi } from '../api';
import { useServices } from '../components/services';
import { IRun } from '../schema';

/** The trace of a run that was profiled, to be kept as a file. */
export function Profile(props: { api: IApi; run: IRun }): React.ReactElement {
  const { trans } = useServices();
  const { api, run } = props;
  const [rank, setRank] = React.useState(0);
  const [trouble, setTrouble] = React.useState('');
  const [busy, setBusy] = React.useState(false);
  const fetch = async () => {
    setBusy(true);
    try {
      keep(await api.runProfile(run.id, rank), `${run.id}-rank-${rank}.trace.json`);
      setTrouble('');
    } catch (error) {
      setTrouble(error instanceof Error ? error.message : String(error));
    } finally {
      setBusy(false);
    }
  };
  return (
    <>
      <div className="aios-Tools">
        <label>
          {trans.__('Rank')}{' '}
          <select
            onChange={event => setRank(Number(event.currentTarget.value))}
            value={rank}
          >
            {Array.from({ length: run.world_size }, (_, number) => (
              <option key={number} value={number}>
                {number}
              </option>
            ))}
          </select>
        </label>
        <button className="jp-mod-styled" disabled={busy} onClick={() => void fetch()}>
          {trans.__('Download the trace')}
        </button>
      </div>
      {trouble && <p className="aios-Reason">{trouble}</p>}
      <p className="aios-Muted">
        {trans.__(
          'A run that was started with --profile has one after some 15 optimizer steps. Open it in ui.perfetto.dev or chrome://tracing.'
        )}
      </p>
    </>
  );
}

/** Have the browser store a file. */
function keep(data: Blob, name: string): void {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(data);
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}
