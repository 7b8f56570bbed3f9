import { JupyterFrontEnd } from '@jupyterlab/application';
import { Dialog, InputDialog, Notification, showDialog } from '@jupyterlab/apputils';
import { TranslationBundle } from '@jupyterlab/translation';
import { CommandRegistry } from '@lumino/commands';
import { ReadonlyPartialJSONObject } from '@lumino/coreutils';

import { IApi } from './api';
import { aiosIcon } from './icons';
import { isKind, Pages } from './details/widget';
import {
  cancelLosses,
  Losses,
  releaseLosses,
  rollbackLosses,
  stopBatchLosses,
  stopLosses,
  unreserveLosses
} from './losses';
import { ClusterModel } from './model';
import { Registry, versionBefore } from './registry';
import { losses as lossList } from './components/losses';
import { CommandIDs } from './tokens';

/** What the commands act on. */
export interface ICommandOptions {
  app: JupyterFrontEnd;
  api: IApi;
  model: ClusterModel;
  pages: Pages;
  panel: string;
  registry: Registry;
  trans: TranslationBundle;
}

/** Add all commands. Those that end something ask first and name what is lost. */
export function addCommands(options: ICommandOptions): void {
  const { app, api, model, registry, trans } = options;
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

  commands.addCommand(CommandIDs.reprioritize, {
    label: trans.__('Change the Priority of an AIOS Request'),
    describedBy: oneId('request'),
    execute: async args => {
      const { snapshot } = model;
      const request = snapshot?.queue[id(args, 'request')];
      if (!snapshot || !request) {
        return;
      }
      const now = request.priority ?? 0;
      const answer = await InputDialog.getNumber({
        title: trans.__('Priority of %1', request.label || request.user),
        label:
          snapshot.cluster.role === 'admin'
            ? trans.__('Higher goes first, where the policy goes by priority')
            : trans.__(
                'Lower lets others go first; you may not go above %1',
                Math.max(0, now)
              ),
        value: now,
        okLabel: trans.__('Change')
      });
      const { value } = answer;
      if (answer.button.accept && typeof value === 'number' && value !== now) {
        await reporting(() => api.reprioritize(request.id, value));
      }
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

  commands.addCommand(CommandIDs.stopBatch, {
    label: trans.__('Stop a Batch of Notebooks'),
    describedBy: oneId('batch'),
    execute: args => {
      const { snapshot } = model;
      const batch = snapshot?.batches[id(args, 'batch')];
      return (
        snapshot &&
        batch &&
        endAfterAsking(
          trans.__('Stop %1?', batch.label),
          stopBatchLosses(batch, snapshot, trans),
          trans.__('Stop'),
          () => api.stopBatch(batch.id)
        )
      );
    }
  });

  commands.addCommand(CommandIDs.openResults, {
    label: trans.__('Open the Results of a Batch of Notebooks'),
    describedBy: oneId('batch'),
    execute: args =>
      reporting(async () => {
        const { folder, table } = await api.batchResults(id(args, 'batch'));
        await (table
          ? commands.execute('docmanager:open', { path: table })
          : commands.execute('filebrowser:open-path', { path: `/${folder}` }));
      })
  });

  commands.addCommand(CommandIDs.openLog, {
    label: trans.__('Open the Log of an AIOS Run'),
    describedBy: oneId('run'),
    execute: args => options.pages.open('run', id(args, 'run'), 'log')
  });

  commands.addCommand(CommandIDs.tryEndpoint, {
    label: trans.__('Try an AIOS Endpoint'),
    describedBy: oneId('run'),
    execute: args => options.pages.open('run', id(args, 'run'), 'try')
  });

  commands.addCommand(CommandIDs.openDetails, {
    label: trans.__('Open the Details of an AIOS Run, Device, Lease, Model or Dataset'),
    describedBy: {
      args: {
        type: 'object',
        properties: {
          kind: { type: 'string', enum: ['dataset', 'device', 'lease', 'model', 'run'] },
          id: { type: 'string' }
        },
        required: ['kind', 'id']
      }
    },
    execute: args => {
      if (isKind(args['kind'])) {
        options.pages.open(args['kind'], id(args, 'id'));
      }
    }
  });

  commands.addCommand(CommandIDs.extend, {
    label: trans.__('Extend an AIOS Lease'),
    describedBy: oneId('lease'),
    execute: async args => {
      const lease = model.snapshot?.leases[id(args, 'lease')];
      if (!lease) {
        return;
      }
      const choice = await InputDialog.getItem({
        title: trans.__('Extend %1', lease.label || lease.id),
        label: trans.__('Let it end, from now, in'),
        items: TIMES.map(([, hours]) => trans._n('%1 hour', '%1 hours', hours)),
        current: 0,
        okLabel: trans.__('Extend')
      });
      const hours = TIMES.find(
        ([, count]) => trans._n('%1 hour', '%1 hours', count) === choice.value
      );
      if (choice.button.accept && hours) {
        await reporting(() => api.extend(lease.id, hours[0]));
      }
    }
  });

  commands.addCommand(CommandIDs.promote, {
    label: trans.__('Promote a Model'),
    describedBy: {
      args: {
        type: 'object',
        properties: { model: { type: 'string' }, version: { type: 'integer' } },
        required: ['model']
      }
    },
    execute: async args => {
      const found = registry.models?.find(one => one.name === id(args, 'model'));
      const given = Number(args['version']) || found?.versions[0]?.version;
      if (!found || !given) {
        return;
      }
      const answer = await InputDialog.getItem({
        title: trans.__('Promote %1', `${found.name}/${given}`),
        label: trans.__('Alias that shall stand for it; one that exists moves to it'),
        items: [...new Set([...Object.keys(found.aliases), 'champion', 'staging'])],
        editable: true,
        current: 0,
        okLabel: trans.__('Promote')
      });
      if (answer.button.accept && answer.value) {
        await moveAlias(found.name, given, answer.value.trim());
      }
    }
  });

  commands.addCommand(CommandIDs.rollback, {
    label: trans.__('Roll a Model Back'),
    describedBy: {
      args: {
        type: 'object',
        properties: { model: { type: 'string' }, alias: { type: 'string' } },
        required: ['model', 'alias']
      }
    },
    execute: async args => {
      const found = registry.models?.find(one => one.name === id(args, 'model'));
      const alias = id(args, 'alias');
      const back = found && versionBefore(found, alias);
      if (found && back) {
        await endAfterAsking(
          trans.__('Roll %1 back to version %2?', `${found.name}@${alias}`, back),
          rollbackLosses(found, alias, trans),
          trans.__('Roll back'),
          () => api.rollback(found.name, alias).then(() => registry.refresh())
        );
      }
    }
  });

  function moveAlias(name: string, version: number, alias: string): Promise<void> {
    return reporting(async () => {
      await api.promote(name, version, alias);
      await registry.refresh();
    });
  }

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

/** By how much a lease can be extended: seconds, hours. */
const TIMES = [1, 2, 4, 8, 24].map(hours => [hours * 3600, hours] as const);

/** Run an action; a refusal is shown in the server's own words. */
export async function reporting(action: () => Promise<void>): Promise<void> {
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
