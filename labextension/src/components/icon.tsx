import * as React from 'react';

/** Outlines on a 16 × 16 grid, drawn in the color of the text around them. */
const OUTLINES = {
  caret: 'M5.5 3.5 10.5 8l-5 4.5',
  check: 'M3 8.5 6.5 12 13 4.5',
  close: 'M4 4l8 8M12 4l-8 8',
  copy: 'M6 6h7.5v7.5H6zM10 6V2.5H2.5V10H6',
  cpu: 'M5 3h6a2 2 0 0 1 2 2v6a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2V5a2 2 0 0 1 2-2zM6.5 6.5h3v3h-3zM6 1v2M10 1v2M6 13v2M10 13v2M1 6h2M1 10h2M13 6h2M13 10h2',
  gpu: 'M1.5 2.5V14M1.5 4.5h12a1 1 0 0 1 1 1v5a1 1 0 0 1-1 1h-12M4 11.5v2M8 11.5v2M7.8 8a2 2 0 1 1-4 0 2 2 0 0 1 4 0zM10.5 6.8h2M10.5 9.2h2',
  log: 'M3 3.5h10M3 6.5h7M3 9.5h10M3 12.5h5',
  mig: 'M1.5 2.5V14M1.5 4.5h12a1 1 0 0 1 1 1v5a1 1 0 0 1-1 1h-12M5.5 4.5v7M9.5 4.5v7',
  back: 'M6.5 3 3 6.5 6.5 10M3 6.5h6.5a3.5 3.5 0 0 1 0 7H6',
  jump: 'M9 2.5h4.5V7M13.5 2.5 7.5 8.5M6.5 3.5h-4v10h10v-4',
  model: 'M8 1.5 14 5v6l-6 3.5L2 11V5zM2 5l6 3.5L14 5M8 8.5v6',
  up: 'M8 13.5v-11M3.5 7 8 2.5 12.5 7',
  node: 'M3 2.5h10a1 1 0 0 1 1 1v3a1 1 0 0 1-1 1H3a1 1 0 0 1-1-1v-3a1 1 0 0 1 1-1zM3 8.5h10a1 1 0 0 1 1 1v3a1 1 0 0 1-1 1H3a1 1 0 0 1-1-1v-3a1 1 0 0 1 1-1zM4.5 5h.5M4.5 11h.5',
  person: 'M10.5 5a2.5 2.5 0 1 1-5 0 2.5 2.5 0 0 1 5 0zM3 14c0-3 2-4.5 5-4.5s5 1.5 5 4.5',
  priority: 'M5 13V3.5M2.5 6 5 3.5 7.5 6M11 3v9.5M8.5 10 11 12.5 13.5 10',
  stop: 'M4 4h8v8H4z',
  play: 'M5 3.5 12 8l-7 4.5z',
  table: 'M2 3h12v10H2zM2 6.5h12M2 9.8h12M6 3v10',
  warning: 'M8 2 15 14H1zM8 6.5v3.5M8 12v.2'
} as const;

export type IconName = keyof typeof OUTLINES;

/** A small decorative icon; what it means is said in the text beside it or in a label. */
export const Icon = React.memo(function Icon(props: {
  name: IconName;
  className?: string;
}): React.ReactElement {
  return (
    <svg
      aria-hidden="true"
      className={`aios-Icon ${props.className ?? ''}`}
      fill="none"
      height="14"
      stroke="currentColor"
      strokeLinecap="round"
      strokeLinejoin="round"
      strokeWidth="1.3"
      viewBox="0 0 16 16"
      width="14"
    >
      <path
        d={OUTLINES[props.name]}
        fill={props.name === 'stop' ? 'currentColor' : undefined}
      />
    </svg>
  );
});
