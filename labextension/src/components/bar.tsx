import * as React from 'react';

/**
 * A level such as utilization: a thin bar, and the value in words for who cannot see it.
 *
 * A busy device is what one wants; a full memory (`fill`) is worth a color.
 */
export function Meter(props: {
  label: string;
  title: string;
  text: string;
  percent: number;
  fill?: boolean;
}): React.ReactElement {
  return (
    <div
      aria-label={props.title}
      aria-valuemax={100}
      aria-valuemin={0}
      aria-valuenow={Math.round(props.percent)}
      aria-valuetext={props.text}
      className="aios-Meter"
      role="meter"
      title={`${props.title}: ${props.text}`}
    >
      <span className="aios-Meter-label">{props.label}</span>
      <span
        className="aios-Bar"
        data-level={props.fill && props.percent > 95 ? 'full' : undefined}
      >
        <span style={{ transform: `scaleX(${props.percent / 100})` }} />
      </span>
      <span className="aios-Meter-text">{props.text}</span>
    </div>
  );
}

/** How far something is; a moving stripe where the end is not known. */
export function ProgressBar(props: {
  label: string;
  percent: number | null;
  state: string;
}): React.ReactElement {
  const known = props.percent !== null;
  return (
    <div
      aria-label={props.label}
      aria-valuemax={100}
      aria-valuemin={0}
      aria-valuenow={known ? Math.round(props.percent ?? 0) : undefined}
      className={`aios-Bar aios-Progress ${known ? '' : 'aios-mod-unknown'}`}
      data-state={props.state}
      role="progressbar"
    >
      <span style={known ? { transform: `scaleX(${(props.percent ?? 0) / 100})` } : {}} />
    </div>
  );
}
