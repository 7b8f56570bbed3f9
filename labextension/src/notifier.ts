import { Notification } from '@jupyterlab/apputils';
import { TranslationBundle } from '@jupyterlab/translation';
import { CommandRegistry } from '@lumino/commands';

import { ClusterModel } from './model';
import { Notice, notices } from './notices';
import { deviceName } from './overview';
import { ISnapshot } from './schema';
import { CommandIDs } from './tokens';

/** Tells what is news, while `on`. */
export class Notifier {
  constructor(
    private _model: ClusterModel,
    private _commands: CommandRegistry,
    private _trans: TranslationBundle
  ) {
    _model.changed.connect(this._onChanged, this);
  }

  on = true;

  private _onChanged(): void {
    const [before, after] = [this._before, this._model.snapshot];
    this._before = after;
    // After a gap, or with another cluster, nobody knows what is new.
    if (
      !this.on ||
      !before ||
      !after ||
      before.cluster.started !== after.cluster.started
    ) {
      return;
    }
    notices(before, after).forEach(notice => this._tell(notice, after));
  }

  private _tell(notice: Notice, snapshot: ISnapshot): void {
    const trans = this._trans;
    if (notice.kind === 'granted' || notice.kind === 'ending') {
      const { lease } = notice;
      const names = lease.devices.map(id => deviceName(snapshot.devices[id], id));
      const what = names.join(', ');
      const show = this._action(trans.__('Show'), CommandIDs.openDetails, {
        kind: 'lease',
        id: lease.id
      });
      if (notice.kind === 'granted') {
        Notification.success(
          trans.__('%1 has what it waited for: %2', lease.label || lease.id, what),
          { actions: [show], autoClose: 15_000 }
        );
        return;
      }
      const minutes = Math.max(
        1,
        Math.round(((lease.expires ?? 0) - this._model.now()) / 60)
      );
      Notification.warning(
        trans._n(
          'The lease of %2 (%3) ends in %1 minute',
          'The lease of %2 (%3) ends in %1 minutes',
          minutes,
          lease.label || lease.id,
          what
        ),
        {
          actions: [
            this._action(trans.__('Extend…'), CommandIDs.extend, { lease: lease.id })
          ],
          autoClose: false
        }
      );
      return;
    }
    const { run, kind } = notice;
    const log = this._action(trans.__('Details'), CommandIDs.openDetails, {
      kind: 'run',
      id: run.id
    });
    if (kind === 'finished') {
      Notification.success(trans.__('%1 has finished', run.name), {
        actions: [log],
        autoClose: 15_000
      });
    } else {
      Notification.error(
        trans.__(
          '%1 has failed: %2',
          run.name,
          run.reason || trans.__('no reason given')
        ),
        { actions: [log], autoClose: 60_000 }
      );
    }
  }

  private _action(
    label: string,
    command: string,
    args: Record<string, string>
  ): Notification.IAction {
    return { label, callback: () => void this._commands.execute(command, args) };
  }

  private _before: ISnapshot | null = null;
}
