import * as React from 'react';

import { bytes, bytesOf, percent, temperature } from '../format';
import { ILook } from '../plot';
import { WINDOW } from '../history';
import { deviceName, DeviceState } from '../overview';
import { IDevice, IHolder, IProcess } from '../schema';
import { Meter } from './bar';
import { Icon, IconName } from './icon';
import { Lines } from './plot';
import { Open } from './section';
import { useNow, useServices } from './services';

const ICONS: Record<IDevice['kind'], IconName> = {
  gpu: 'gpu',
  mig: 'mig',
  simulated: 'gpu',
  cpu: 'cpu'
};

/** One device: how busy it is, and who holds it. */
export const DeviceRow = React.memo(function DeviceRow(props: {
  device: IDevice;
  run: string;
  state: DeviceState;
  user: string;
  withHost?: boolean;
}): React.ReactElement {
  const { trans } = useServices();
  const { device, state } = props;
  const name = deviceName(device, device.id);
  const measured = device.utilization !== null || device.memory_used !== null;
  return (
    <div
      className="aios-Device"
      data-device={device.id}
      data-kind={device.kind}
      data-state={state}
      title={device.id}
    >
      <div className="aios-Device-head">
        <Icon name={ICONS[device.kind]} />
        <Open
          className="aios-Device-index"
          kind="device"
          id={device.id}
          label={trans.__('Details of %1 on %2', name, device.host)}
        >
          {props.withHost ? `${device.host} · ${name}` : name}
        </Open>
        <span className="aios-Device-name" title={device.name}>
          {model(device)}
        </span>
        {device.kind === 'simulated' && (
          <span className="aios-Badge">{trans.__('simulated')}</span>
        )}
        <Climate device={device} />
        {state === 'free' && <span className="aios-Device-free">{trans.__('free')}</span>}
      </div>
      {measured && (
        <div className="aios-Device-meters">
          <div>
            {device.utilization !== null && (
              <Meter
                label={trans.__('use')}
                title={trans.__('Utilization')}
                percent={device.utilization}
                text={`${Math.round(device.utilization)}%`}
              />
            )}
            {device.memory_used !== null && device.memory > 0 && (
              <Meter
                fill
                label={trans.__('mem')}
                title={trans.__('Memory')}
                percent={percent(device.memory_used, device.memory) ?? 0}
                text={bytesOf(device.memory_used, device.memory)}
              />
            )}
          </div>
          <Past device={device} />
        </div>
      )}
      {device.shares?.length
        ? device.shares.map(share => (
            <Holder
              key={share.lease}
              holder={share}
              run={share.lease === device.holder?.lease ? props.run : share.run}
              mine={share.user === props.user}
              memory={share.memory}
            />
          ))
        : device.holder && (
            <Holder holder={device.holder} run={props.run} mine={state === 'mine'} />
          )}
      {device.outside.map(process => (
        <Outside key={process.pid} process={process} />
      ))}
    </div>
  );
});

function Climate(props: { device: IDevice }): React.ReactElement | null {
  const { temperature: degrees, power, power_limit } = props.device;
  const { trans } = useServices();
  const parts: string[] = [];
  if (degrees !== null) {
    parts.push(temperature(degrees));
  }
  if (power !== null) {
    parts.push(`${Math.round(power)} W`);
  }
  if (parts.length === 0) {
    return null;
  }
  const limit = power_limit
    ? trans.__('Temperature and power; the limit is %1 W', Math.round(power_limit))
    : trans.__('Temperature and power');
  return (
    <span className="aios-Device-climate aios-Muted" title={limit}>
      {parts.join(' · ')}
    </span>
  );
}

/** The last two minutes: utilization as an area, memory as a line. */
function Past(props: { device: IDevice }): React.ReactElement {
  const { sight, trans } = useServices();
  const now = useNow();
  const { id } = props.device;
  const { lines, look } = React.useMemo(() => {
    const past = sight.model.history.device(id, now);
    const look: ILook = { height: 28, spark: true, x: [now - WINDOW, now], y: [0, 100] };
    return {
      look,
      lines: [
        {
          label: 'utilization',
          color: '--jp-brand-color1',
          course: past.utilization,
          filled: true
        },
        { label: 'memory', color: '--jp-ui-font-color3', course: past.memory }
      ]
    };
  }, [sight, id, now]);
  return (
    <Lines
      className="aios-Spark"
      label={trans.__('Utilization and memory in the last two minutes')}
      lines={lines}
      look={look}
    />
  );
}

/** The model without what everybody knows or what stands beside it already. */
function model(device: IDevice): string {
  return device.kind === 'cpu' || device.kind === 'simulated'
    ? ''
    : device.name.replace(/^NVIDIA /, '');
}

function Holder(props: {
  holder: IHolder;
  run: string;
  mine: boolean;
  memory?: number;
}): React.ReactElement {
  const { trans } = useServices();
  const { user, label } = props.holder;
  const memory = props.memory ? bytes(props.memory) : '';
  const parts = [props.mine ? trans.__('you') : user, label, props.run, memory].filter(
    Boolean
  );
  const text = parts.join(' · ');
  return (
    <div className="aios-Device-holder" title={text}>
      <Icon name="person" />
      <span className="aios-Ellipsis">{text}</span>
    </div>
  );
}

function Outside(props: { process: IProcess }): React.ReactElement {
  const { trans } = useServices();
  const { pid, name, user, memory } = props.process;
  const what = [name, user, memory > 0 ? bytes(memory) : ''].filter(Boolean).join(', ');
  return (
    <div className="aios-Device-outside" role="note">
      <Icon name="warning" />
      <span>
        {trans.__('in use outside any lease: pid %1', pid)}
        {what && ` (${what})`}
      </span>
    </div>
  );
}
