import { JupyterFrontEnd } from '@jupyterlab/application';
import { Dialog, Notification, showDialog } from '@jupyterlab/apputils';
import { TranslationBundle } from '@jupyterlab/translation';
import { CommandRegistry } from '@lumino/commands';
import { ReadonlyPartialJSONObject } from '@lumino/coreutils';

import { IApi } from './api';
import { aiosIcon } from './icons';
import { RunLog } from './log';
import {
  cancelLosses,
  Losses,
  releaseLosses,
  stopLosses,
  unreserveLosses
} from './losses';
import { ClusterModel } from './model';
import { losses as lossList } from './components/losses';
import { CommandIDs } from './tokens';

/** What the commands act on. */
export interface ICommandOptions {
  app: JupyterFrontEnd;
  api: IApi;
  model: ClusterModel;
  panel: string;
  trans: TranslationBundle;
}

/** Add all commands. Those that end something ask first and name what is lost. */
export function addCommands(options: ICommandOptions): void {
  const { app, api, model, trans } = options;
  const { commands } = app;

  commands.addCommand(CommandIDs.open, {
    label: trans.__('Show the AIOS Cluster'),
    icon: aiosIcon,
    describedBy: NO_ARGS,
    execute: () => app.shell.activateById(options.panel)
  });

  commands.addCommand(CommandIDs.startCluster, {
    label: trans.__('Start an AIOS Cluster on the Jupyter Server'),
    describedBy: NO_ARGS,
    isEnabled: () => model.snapshot === null,
    execute: () =>
      reporting(async () => {
        model.apply(await api.startCluster());
      })
  });

  commands.addCommand(CommandIDs.release, {
    label: trans.__('Release an AIOS Lease'),
    describedBy: oneId('lease'),
    execute: args => {
      const { snapshot } = model;
      const lease = snapshot?.leases[id(args, 'lease')];
      return (
        snapshot &&
        lease &&
        endAfterAsking(
          trans.__('Release %1?', lease.label || lease.id),
          releaseLosses(lease, snapshot, trans),
          trans.__('Release'),
          () => api.release(lease.id)
        )
      );
    }
  });

  commands.addCommand(CommandIDs.cancel, {
    label: trans.__('Cancel an AIOS Request'),
    describedBy: oneId('request'),
    execute: args => {
      const { snapshot } = model;
      const request = snapshot?.queue[id(args, 'request')];
      return (
        snapshot &&
        request &&
        endAfterAsking(
          trans.__('Cancel the request of %1?', request.label || request.user),
          cancelLosses(request, snapshot, model.now(), trans),
          trans.__('Cancel the request'),
          () => api.cancel(request.id)
        )
      );
    }
  });

  commands.addCommand(CommandIDs.unreserve, {
    label: trans.__('Cancel an AIOS Reservation'),
    describedBy: oneId('reservation'),
    execute: args => {
      const { snapshot } = model;
      const reservation = snapshot?.reservations[id(args, 'reservation')];
      return (
        snapshot &&
        reservation &&
        endAfterAsking(
          trans.__(
            'Cancel the reservation of %1?',
            reservation.label || reservation.user
          ),
          unreserveLosses(reservation, snapshot, trans),
          trans.__('Cancel the reservation'),
          () => api.cancel(reservation.id)
        )
      );
    }
  });

  commands.addCommand(CommandIDs.stopRun, {
    label: trans.__('Stop an AIOS Run'),
    describedBy: oneId('run'),
    execute: args => {
      const { snapshot } = model;
      const run = snapshot?.runs[id(args, 'run')];
      return (
        snapshot &&
        run &&
        endAfterAsking(
          trans.__('Stop %1?', run.name),
          stopLosses(run, snapshot, trans),
          trans.__('Stop'),
          () => api.stopRun(run.id)
        )
      );
    }
  });

  commands.addCommand(CommandIDs.openLog, {
    label: trans.__('Open the Log of an AIOS Run'),
    describedBy: oneId('run'),
    execute: args => RunLog.open(id(args, 'run'), options)
  });

  /** Ask, and end it when the answer is yes. */
  async function endAfterAsking(
    title: string,
    losses: Losses,
    verb: string,
    end: () => Promise<void>
  ): Promise<void> {
    const answer = await showDialog({
      title,
      body: lossList(losses),
      buttons: [
        Dialog.cancelButton({ label: trans.__('Keep') }),
        Dialog.warnButton({ label: verb })
      ],
      defaultButton: 0
    });
    if (answer.button.accept) {
      await reporting(end);
    }
  }
}

/** Ids of commands that make sense without arguments, for the palette. */
export const PALETTE: readonly string[] = [CommandIDs.open, CommandIDs.startCluster];

/** Run an action; a refusal is shown in the server's own words. */
async function reporting(action: () => Promise<void>): Promise<void> {
  try {
    await action();
  } catch (error) {
    Notification.error(error instanceof Error ? error.message : String(error), {
      autoClose: 8000
    });
  }
}

function id(args: ReadonlyPartialJSONObject, name: string): string {
  const value = args[name];
  return typeof value === 'string' ? value : '';
}

const NO_ARGS: CommandRegistry.ICommandOptions['describedBy'] = {
  args: { type: 'object', properties: {} }
};

function oneId(name: string): CommandRegistry.ICommandOptions['describedBy'] {
  return {
    args: { type: 'object', properties: { [name]: { type: 'string' } }, required: [name] }
  };
}
