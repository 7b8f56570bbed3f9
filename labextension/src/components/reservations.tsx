import * as React from 'react';

import { clock, duration } from '../format';
import { mayEnd } from '../overview';
import { IReservation } from '../schema';
import { CommandIDs } from '../tokens';
import { Icon } from './icon';
import { Action } from './section';
import { useModel, useNow, useServices } from './services';

/** Who has devices for a time to come, the earliest first. */
export function ReservationsSection(): React.ReactElement {
  const reservations = useModel(model => model.snapshot?.reservations);
  const rows = Object.values(reservations ?? {}).sort((a, b) => a.start - b.start);
  return (
    <ul className="aios-Rows">
      {rows.map(row => (
        <ReservationRow key={row.id} reservation={row} />
      ))}
    </ul>
  );
}

function ReservationRow(props: { reservation: IReservation }): React.ReactElement {
  const { commands, trans } = useServices();
  const snapshot = useModel(model => model.snapshot);
  const now = useNow();
  const { id, user, label, want, count, start, end, lease } = props.reservation;
  const mine = user === snapshot?.cluster.user;
  const what = {
    gpu: trans._n('%1 GPU', '%1 GPUs', count),
    device: trans._n('%1 device', '%1 devices', count),
    cpu: trans._n('%1 CPU', '%1 CPUs', count)
  }[want];
  const begins =
    start > now ? trans.__('in %1', duration(start - now)) : trans.__('due now');
  const state = lease ? trans.__('leased as %1', lease) : begins;
  return (
    <li className="aios-Row" data-reservation={id}>
      <div className="aios-Row-head">
        <span className="aios-Row-title" title={id}>
          {what}
        </span>
        <span className="aios-Row-label">{label}</span>
        {snapshot && mayEnd(snapshot, user) && (
          <Action
            danger
            label={trans.__('Cancel the reservation of %1', what)}
            onClick={() =>
              void commands.execute(CommandIDs.unreserve, { reservation: id })
            }
          >
            <Icon name="close" />
          </Action>
        )}
      </div>
      <div className="aios-Muted">
        {mine ? trans.__('you') : user} · {clock(start)}–{clock(end)} · {state}
      </div>
    </li>
  );
}
