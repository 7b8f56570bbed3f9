import * as React from 'react';

import { aiosIcon } from '../icons';
import { CommandIDs } from '../tokens';
import { useModel, useServices } from './services';

/** What is shown where there is no cluster: why, and what to do. */
export function EmptyState(): React.ReactElement {
  const { trans } = useServices();
  const link = useModel(model => model.link);
  const trouble = useModel(model => model.trouble);
  if (link === 'connecting') {
    return (
      <div className="aios-Empty aios-Muted">{trans.__('Looking for a cluster…')}</div>
    );
  }
  if (link === 'lost') {
    return (
      <div className="aios-Empty" role="status">
        <aiosIcon.react tag="span" className="aios-Empty-icon" />
        <h3>{trans.__('The Jupyter server does not answer')}</h3>
        <p>
          {trans.__(
            'The sidebar comes back by itself when it does. If the server is up, look whether its extension is on:'
          )}
        </p>
        <code>jupyter server extension list</code>
      </div>
    );
  }
  return (
    <div className="aios-Empty" role="status">
      <aiosIcon.react tag="span" className="aios-Empty-icon" />
      <h3>
        {trouble
          ? trans.__('The cluster cannot be reached')
          : trans.__('No cluster is running')}
      </h3>
      {trouble && <p className="aios-Empty-reason">{trouble}</p>}
      <StartButton />
      <p>{trans.__('or, in a notebook:')}</p>
      <pre>
        {'%load_ext aios_jupyter\n'}
        {'%aios up'}
      </pre>
    </div>
  );
}

function StartButton(): React.ReactElement {
  const { commands, trans } = useServices();
  const [starting, setStarting] = React.useState(false);
  const start = async () => {
    setStarting(true);
    try {
      await commands.execute(CommandIDs.startCluster);
    } finally {
      setStarting(false);
    }
  };
  return (
    <button
      className="jp-Dialog-button jp-mod-accept jp-mod-styled"
      disabled={starting}
      onClick={() => void start()}
    >
      {starting ? trans.__('Starting…') : trans.__('Start a cluster here')}
    </button>
  );
}
