import * as React from 'react';

import { clock, duration } from '../format';
import { mayEnd } from '../overview';
import { IReservation } from '../schema';
import { CommandIDs } from '../tokens';
import { Icon } from './icon';
import { Rows } from './rows';
import { Action } from './section';
import { useModel, useNow, useServices } from './services';

/** Who has devices for a time to come, the earliest first. */
export function ReservationsSection(): React.ReactElement {
  const { trans } = useServices();
  const reservations = useModel(model => model.snapshot?.reservations);
  const rows = Object.values(reservations ?? {}).sort((a, b) => a.start - b.start);
  return (
    <Rows
      items={rows}
      keyOf={row => row.id}
      height={() => 48}
      label={trans.__('Reservations')}
    >
      {row => <ReservationRow reservation={row} />}
    </Rows>
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
    <div className="aios-Row" data-reservation={id}>
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
    </div>
  );
}
