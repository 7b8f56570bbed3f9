import { TranslationBundle } from '@jupyterlab/translation';
import { CommandRegistry } from '@lumino/commands';
import * as React from 'react';

import { ClusterModel } from '../model';
import { Asked } from '../asked';
import { Datasets, IDataset } from '../datasets';
import { IModel, Registry } from '../registry';
import { Sight } from '../sight';

/** What components draw from and act through. */
export interface IServices {
  commands: CommandRegistry;
  /** Of the published models; not everywhere. */
  registry?: Registry;
  /** Of the catalogue of data; not everywhere. */
  datasets?: Datasets;
  /** The element in which everything scrolls. */
  scroller: HTMLElement;
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
  const read = () => select(sight.model);
  return React.useSyncExternalStore(subscribe, read, read);
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
  const read = () => Math.floor(sight.model.now());
  return React.useSyncExternalStore(subscribe, read, read);
}

/** The registry's models; it is asked for as long as the component is drawn. */
export function useRegistry(): { models: IModel[] | null; trouble: string } {
  const { answer, trouble } = useAsked(useServices().registry);
  return { models: answer, trouble };
}

/** The catalogue's datasets; it is asked for as long as the component is drawn. */
export function useDatasets(): { answer: IDataset[] | null; trouble: string } {
  return useAsked(useServices().datasets);
}

function useAsked<T>(asked: Asked<T> | undefined): { answer: T | null; trouble: string } {
  if (!asked) {
    throw new Error('A component of aios-jupyter was drawn where nobody can be asked.');
  }
  React.useEffect(() => asked.watch(), [asked]);
  const subscribe = React.useCallback(
    (notify: () => void) => {
      asked.changed.connect(notify);
      return () => void asked.changed.disconnect(notify);
    },
    [asked]
  );
  const answer = () => asked.answer;
  const trouble = () => asked.trouble;
  return {
    answer: React.useSyncExternalStore(subscribe, answer, answer),
    trouble: React.useSyncExternalStore(subscribe, trouble, trouble)
  };
}
