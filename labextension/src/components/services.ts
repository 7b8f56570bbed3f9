import { TranslationBundle } from '@jupyterlab/translation';
import { CommandRegistry } from '@lumino/commands';
import * as React from 'react';

import { ClusterModel } from '../model';
import { Sight } from '../sight';

/** What components draw from and act through. */
export interface IServices {
  commands: CommandRegistry;
  sight: Sight;
  trans: TranslationBundle;
}

const Context = React.createContext<IServices | null>(null);

export const ServicesProvider = Context.Provider;

export function useServices(): IServices {
  const services = React.useContext(Context);
  if (!services) {
    throw new Error('A component of aios-jupyter was drawn outside its panel.');
  }
  return services;
}

/** A part of the model; the component is drawn again when it is another object. */
export function useModel<T>(select: (model: ClusterModel) => T): T {
  const { sight } = useServices();
  const subscribe = React.useCallback(
    (notify: () => void) => {
      sight.changed.connect(notify);
      return () => void sight.changed.disconnect(notify);
    },
    [sight]
  );
  return React.useSyncExternalStore(subscribe, () => select(sight.model));
}

/** The server's clock in whole seconds; the component is drawn again with each. */
export function useNow(): number {
  const { sight } = useServices();
  const subscribe = React.useCallback(
    (notify: () => void) => {
      sight.ticked.connect(notify);
      return () => void sight.ticked.disconnect(notify);
    },
    [sight]
  );
  return React.useSyncExternalStore(subscribe, () => Math.floor(sight.model.now()));
}
