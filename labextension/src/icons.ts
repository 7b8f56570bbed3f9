import { LabIcon } from '@jupyterlab/ui-components';

import aiosSvg from '../style/icons/aios.svg';

/** The extension's own icon: sidebar, status bar, commands. */
export const aiosIcon = new LabIcon({ name: 'aios-jupyter:aios', svgstr: aiosSvg });
