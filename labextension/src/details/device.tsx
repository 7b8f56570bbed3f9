import * as React from 'react';

import { Lines } from '../components/plot';
import { Open } from '../components/section';
import { useModel, useNow, useServices } from '../components/services';
import { bytes, bytesOf, temperature } from '../format';
import { WINDOW } from '../history';
import { deviceName, deviceState } from '../overview';
import { ILook } from '../plot';
import { IDevice, IHolder, IShare } from '../schema';
import { Facts, Gone } from './facts';

/** A device: its last two minutes, who holds it, and what runs on it outside any lease. */
export function DeviceDetails(props: { id: string }): React.ReactElement {
  const { trans } = useServices();
  const device = useModel(model => model.snapshot?.devices[props.id]);
  const state = useModel(model => {
    const found = model.snapshot?.devices[props.id];
    return model.snapshot && found ? deviceState(found, model.snapshot) : 'lost';
  });
  if (!device) {
    return <Gone>{trans.__('The cluster has no device %1.', props.id)}</Gone>;
  }
  const holders = device.shares?.length
    ? device.shares
    : device.holder
      ? [device.holder]
      : [];
  return (
    <article aria-label={deviceName(device, device.id)}>
      <header className="aios-Details-head">
        <h2>
          {deviceName(device, device.id)} · {device.host}
        </h2>
        {device.kind === 'simulated' && (
          <span className="aios-Badge">{trans.__('simulated')}</span>
        )}
        {state === 'lost' && (
          <span className="aios-Badge aios-mod-error">{trans.__('not reachable')}</span>
        )}
      </header>
      <Past device={device} />
      <Measures device={device} />
      <h3>{trans.__('Held by')}</h3>
      {holders.length === 0 && <p>{trans.__('Nobody; it is not leased.')}</p>}
      {holders.map(holder => (
        <Holder
          key={holder.lease}
          holder={holder}
          memory={'memory' in holder ? (holder as IShare).memory : 0}
        />
      ))}
      {device.outside.length > 0 && (
        <>
          <h3>{trans.__('In use outside any lease')}</h3>
          <Facts
            facts={device.outside.map(process => [
              trans.__('pid %1', process.pid),
              [process.name, process.user, process.memory > 0 && bytes(process.memory)]
                .filter(Boolean)
                .join(' · ')
            ])}
          />
        </>
      )}
    </article>
  );
}

function Past(props: { device: IDevice }): React.ReactElement {
  const { sight, trans } = useServices();
  const now = useNow();
  const { id } = props.device;
  const { lines, look } = React.useMemo(() => {
    const past = sight.model.history.device(id, now);
    const ago = (course: typeof past.memory) => ({
      ...course,
      x: course.x.map(x => x - now)
    });
    const look: ILook = {
      height: 200,
      x: [-WINDOW, 0],
      y: [0, 100],
      xLabel: trans.__('seconds'),
      xText: x => trans.__('%1 s', Math.round(x))
    };
    return {
      look,
      lines: [
        {
          label: trans.__('Utilization (%)'),
          color: '--jp-brand-color1',
          course: ago(past.utilization),
          filled: true
        },
        {
          label: trans.__('Memory (%)'),
          color: '--jp-warn-color1',
          course: ago(past.memory)
        }
      ]
    };
  }, [sight, id, now, trans]);
  return (
    <Lines
      label={trans.__('Utilization and memory in the last two minutes')}
      lines={lines}
      look={look}
    />
  );
}

function Measures(props: { device: IDevice }): React.ReactElement {
  const { trans } = useServices();
  const { device } = props;
  const power =
    device.power !== null &&
    (device.power_limit
      ? trans.__('%1 of %2 W', Math.round(device.power), Math.round(device.power_limit))
      : trans.__('%1 W', Math.round(device.power)));
  return (
    <Facts
      facts={[
        [trans.__('Model'), device.name],
        [
          trans.__('Utilization'),
          device.utilization === null ? '' : `${Math.round(device.utilization)}%`
        ],
        [
          trans.__('Memory'),
          device.memory_used === null
            ? device.memory > 0
              ? bytes(device.memory)
              : ''
            : bytesOf(device.memory_used, device.memory)
        ],
        [
          trans.__('Temperature'),
          device.temperature === null ? '' : temperature(device.temperature)
        ],
        [trans.__('Power'), power || ''],
        [trans.__('Node'), device.node],
        [trans.__('Identity'), <code key="id">{device.id}</code>]
      ]}
    />
  );
}

function Holder(props: { holder: IHolder; memory: number }): React.ReactElement {
  const { trans } = useServices();
  const { lease, user, label, run } = props.holder;
  const name = useModel(model => model.snapshot?.runs[run]?.name ?? '');
  return (
    <Facts
      facts={[
        [trans.__('User'), user],
        [
          trans.__('Lease'),
          <Open
            key="lease"
            className=""
            kind="lease"
            id={lease}
            label={trans.__('Details of the lease %1', label || lease)}
          >
            {label || lease}
          </Open>
        ],
        [
          trans.__('Run'),
          name && (
            <Open
              key="run"
              className=""
              kind="run"
              id={run}
              label={trans.__('Details of %1', name)}
            >
              {name}
            </Open>
          )
        ],
        [trans.__('Its part of the memory'), props.memory > 0 ? bytes(props.memory) : '']
      ]}
    />
  );
}
