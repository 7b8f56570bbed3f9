import { IStateDB } from '@jupyterlab/statedb';
import { TranslationBundle } from '@jupyterlab/translation';
import { CommandRegistry } from '@lumino/commands';
import { Message } from '@lumino/messaging';
import * as React from 'react';

import { ClusterSection, Load, Overview } from './components/cluster';
import { EmptyState } from './components/empty';
import { LeasesSection } from './components/leases';
import { DatasetsSection } from './components/datasets';
import { ModelsSection } from './components/models';
import { QueueSection } from './components/queue';
import { ReservationsSection } from './components/reservations';
import { RunsSection } from './components/runs';
import { IFolds, Section } from './components/section';
import { useGrowing } from './components/growing';
import { ServicesProvider, useModel, useServices } from './components/services';
import { aiosIcon } from './icons';
import { ClusterModel } from './model';
import { sortedRuns, totals } from './overview';
import { Datasets } from './datasets';
import { Registry } from './registry';
import { isLive } from './schema';
import { Sight } from './sight';
import { SightWidget } from './sightwidget';

/** How many there are. */
const SECTIONS = 7;
const FOLDS = 'aios-jupyter:folded-sections';

/** The sidebar. */
export class ClusterPanel extends SightWidget {
  constructor(private _options: ClusterPanel.IOptions) {
    super(new Sight(_options.model));
    this.id = 'aios-jupyter:panel';
    this.addClass('aios-Panel');
    this.title.icon = aiosIcon;
    this.title.caption = _options.trans.__('AIOS cluster');
    this.node.tabIndex = -1;
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', this.title.caption);
  }

  /** Leave sections out, and draw everything again: units may have changed as well. */
  set hiddenSections(hidden: readonly string[]) {
    this._hidden = new Set(hidden);
    this._drawn++;
    this.update();
  }

  protected override onActivateRequest(message: Message): void {
    super.onActivateRequest(message);
    // From here the Tab key goes through the sections.
    this.node.focus();
  }

  protected override render(): React.ReactElement {
    const { commands, datasets, registry, state, trans } = this._options;
    return (
      <ServicesProvider
        value={{
          commands,
          datasets,
          registry,
          scroller: this.node,
          sight: this.sight,
          trans
        }}
      >
        <Body key={this._drawn} hidden={this._hidden} state={state} />
      </ServicesProvider>
    );
  }

  private _hidden: ReadonlySet<string> = new Set();
  private _drawn = 0;
}

export namespace ClusterPanel {
  export interface IOptions {
    model: ClusterModel;
    commands: CommandRegistry;
    datasets: Datasets;
    registry: Registry;
    trans: TranslationBundle;
    state: IStateDB | null;
  }
}

function Body(props: {
  hidden: ReadonlySet<string>;
  state: IStateDB | null;
}): React.ReactElement {
  const folds = useFolds(props.state);
  const online = useModel(model => model.snapshot !== null && model.link !== 'lost');
  if (!online) {
    return <EmptyState />;
  }
  return (
    <>
      <Head />
      <Sections folds={folds} hidden={props.hidden} />
    </>
  );
}

function Head(): React.ReactElement | null {
  const { trans } = useServices();
  const snapshot = useModel(model => model.snapshot);
  const link = useModel(model => model.link);
  if (!snapshot) {
    return null;
  }
  const { cluster } = snapshot;
  const { kind, free, devices } = totals(snapshot);
  const count =
    kind === 'gpu'
      ? trans._n('%2 of %1 GPU free', '%2 of %1 GPUs free', devices, free)
      : trans._n('%2 of %1 CPU slot free', '%2 of %1 CPU slots free', devices, free);
  return (
    <header className="aios-Head">
      <div className="aios-Head-line">
        <h2 title={trans.__('Cluster %1, as %2', cluster.name, cluster.user)}>{count}</h2>
        {cluster.simulated && (
          <span className="aios-Badge" title={trans.__('Some devices are simulated')}>
            {trans.__('simulated')}
          </span>
        )}
        <span
          aria-label={link === 'live' ? trans.__('Live') : undefined}
          className="aios-Link"
          data-link={link}
          role="status"
          title={
            link === 'live'
              ? trans.__('Live: changes are shown as they happen')
              : trans.__('The event stream is silent; asking every other second')
          }
        >
          {link === 'live' ? '' : trans.__('polling')}
        </span>
      </div>
      <Overview />
      <Load />
    </header>
  );
}

function Sections(props: {
  folds: IFolds;
  hidden: ReadonlySet<string>;
}): React.ReactElement | null {
  const { trans } = useServices();
  const snapshot = useModel(model => model.snapshot);
  const { folds, hidden } = props;
  const there = useGrowing(SECTIONS);
  if (!snapshot) {
    return null;
  }
  const { waiting } = totals(snapshot);
  const nodes = Object.keys(snapshot.nodes).length;
  const { runs, endpoints } = sortedRuns(snapshot.runs);
  const live = runs.filter(isLive).length;
  const reserved = Object.keys(snapshot.reservations ?? {}).length;
  const sections = [
    <Section
      key="cluster"
      id="cluster"
      title={trans.__('Cluster')}
      summary={trans._n('%1 node', '%1 nodes', nodes)}
      folds={folds}
    >
      <ClusterSection folds={folds} />
    </Section>,
    <Section
      key="queue"
      id="queue"
      title={trans.__('Queue')}
      summary={waiting}
      folds={folds}
    >
      <QueueSection />
    </Section>,
    <Section
      key="leases"
      id="leases"
      title={trans.__('Leases')}
      summary={Object.keys(snapshot.leases).length}
      folds={folds}
    >
      <LeasesSection />
    </Section>,
    <Section
      key="reservations"
      id="reservations"
      title={trans.__('Reservations')}
      summary={reserved}
      folds={folds}
    >
      <ReservationsSection />
    </Section>,
    <Section
      key="runs"
      id="runs"
      title={trans.__('Runs')}
      summary={live > 0 ? trans.__('%1 running', live) : runs.length}
      folds={folds}
    >
      <RunsSection folds={folds} />
    </Section>,
    <Section
      key="models"
      id="models"
      title={trans.__('Models')}
      summary={
        endpoints.length > 0
          ? trans._n('%1 endpoint', '%1 endpoints', endpoints.length)
          : ''
      }
      folds={folds}
    >
      <ModelsSection />
    </Section>,
    <Section
      closed
      key="datasets"
      id="datasets"
      title={trans.__('Datasets')}
      summary=""
      folds={folds}
    >
      <DatasetsSection />
    </Section>
  ];
  const wanted = sections.filter(
    ({ key }) => !hidden.has(key ?? '') && (key !== 'reservations' || reserved > 0)
  );
  return <>{wanted.slice(0, there)}</>;
}

/** Which sections are folded, kept across reloads where the application keeps state. */
function useFolds(state: IStateDB | null): IFolds {
  const [folded, setFolded] = React.useState<ReadonlySet<string>>(new Set());
  React.useEffect(() => {
    void state?.fetch(FOLDS).then(value => {
      if (Array.isArray(value)) {
        setFolded(new Set(value.map(String)));
      }
    });
  }, [state]);
  const toggle = React.useCallback(
    (section: string) => {
      setFolded(before => {
        const after = new Set(before);
        if (!after.delete(section)) {
          after.add(section);
        }
        void state?.save(FOLDS, [...after]);
        return after;
      });
    },
    [state]
  );
  return { folded, toggle };
}
