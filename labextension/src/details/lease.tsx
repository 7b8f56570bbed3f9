import * as React from 'react';

import { TimeLeft } from '../components/leases';
import { RunState } from '../components/runs';
import { Open } from '../components/section';
import { useModel, useServices } from '../components/services';
import { clock } from '../format';
import { deviceName, mayEnd } from '../overview';
import { ILease } from '../schema';
import { CommandIDs } from '../tokens';
import { Facts, Gone } from './facts';

/** A lease: whose it is, until when, on which devices, and what runs on it. */
export function LeaseDetails(props: { id: string }): React.ReactElement {
  const { commands, trans } = useServices();
  const snapshot = useModel(model => model.snapshot);
  const lease = snapshot?.leases[props.id];
  if (!snapshot || !lease) {
    return <Gone>{trans.__('The lease %1 has ended.', props.id)}</Gone>;
  }
  const scopes: Record<ILease['scope'], string> = {
    session: trans.__('until its notebook or shell ends'),
    cell: trans.__('for one run'),
    detached: trans.__('until its run ends, whatever becomes of the notebook'),
    reserved: trans.__('until its reservation is over')
  };
  const runs = Object.values(snapshot.runs).filter(run => run.lease === lease.id);
  const mine = mayEnd(snapshot, lease.user) && lease.state === 'active';
  return (
    <article aria-label={lease.label || lease.id}>
      <header className="aios-Details-head">
        <h2>{lease.label || lease.id}</h2>
        <TimeLeft lease={lease} />
        {mine && lease.expires !== null && (
          <button
            className="jp-mod-styled"
            onClick={() => void commands.execute(CommandIDs.extend, { lease: lease.id })}
          >
            {trans.__('Extend…')}
          </button>
        )}
        {mine && (
          <button
            className="jp-mod-styled jp-mod-warn"
            onClick={() => void commands.execute(CommandIDs.release, { lease: lease.id })}
          >
            {trans.__('Release…')}
          </button>
        )}
      </header>
      <Facts
        facts={[
          [trans.__('User'), lease.user],
          [trans.__('Granted'), clock(lease.granted)],
          [trans.__('Lasts'), scopes[lease.scope]],
          [trans.__('Queue'), lease.queue ?? ''],
          [
            trans.__('Preemptible'),
            lease.preemptible ? trans.__('yes; others may take its devices') : ''
          ],
          [trans.__('Why it ends'), lease.reason ?? ''],
          [trans.__('Identity'), <code key="id">{lease.id}</code>]
        ]}
      />
      <h3>{trans.__('Devices')}</h3>
      <ul className="aios-Links">
        {lease.devices.map(id => {
          const device = snapshot.devices[id];
          const name = deviceName(device, id);
          return (
            <li key={id}>
              <Open
                className=""
                kind="device"
                id={id}
                label={trans.__('Details of %1 on %2', name, device?.host ?? '')}
              >
                {device ? `${name} · ${device.host}` : id}
              </Open>
            </li>
          );
        })}
      </ul>
      <h3>{trans.__('Runs')}</h3>
      {runs.length === 0 && <p>{trans.__('Nothing has run on it yet.')}</p>}
      <ul className="aios-Links">
        {runs.map(run => (
          <li key={run.id}>
            <RunState state={run.state} />{' '}
            <Open
              className=""
              kind="run"
              id={run.id}
              label={trans.__('Details of %1', run.name)}
            >
              {run.name || run.id}
            </Open>
          </li>
        ))}
      </ul>
    </article>
  );
}
