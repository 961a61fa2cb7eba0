/**
 * OHIF's extension: it joins the panel, the session and the overlays with OHIF's services.
 */
import { Api, type Sample } from './api';
import { MapPictures } from './maps';
import type { CornerstoneModule, ModeContext, ServicesManager, Subscription } from './ohif';
import { Overlay } from './overlay';
import { definePanel, PANEL_TAG } from './panel';
import { Session } from './session';
import { Shortcuts } from './shortcuts';

const viewerRoot = (window as unknown as { PUBLIC_URL: string }).PUBLIC_URL;
const session = new Session(new Api(viewerRoot.replace(/viewer\/$/, '')));

/** Keeps an overlay on each viewport of the grid while the mode is open. */
class Overlays {
  private readonly overlays = new Map<string, Overlay>();
  private readonly maps = new MapPictures();
  private subscriptions: Subscription[] = [];

  constructor(private readonly services: ServicesManager['services']) {
    session.addEventListener('reveal', (event) => {
      const active = services.viewportGridService.getState().activeViewportId;
      this.overlays.get(active ?? '')?.reveal((event as CustomEvent<number>).detail);
    });
  }

  start(): void {
    const { viewportGridService: grid, cornerstoneViewportService: viewports } = this.services;
    const follow = (): void => this.follow();
    this.subscriptions = [
      grid.subscribe(grid.EVENTS.ACTIVE_VIEWPORT_ID_CHANGED, follow),
      grid.subscribe(grid.EVENTS.GRID_STATE_CHANGED, follow),
      viewports.subscribe(viewports.EVENTS.VIEWPORT_DATA_CHANGED, follow),
    ];
    this.follow();
  }

  stop(): void {
    this.subscriptions.forEach((each) => each.unsubscribe());
    this.subscriptions = [];
    this.overlays.forEach((each) => each.destroy());
    this.overlays.clear();
  }

  private follow(): void {
    const { viewportGridService: grid, cornerstoneViewportService: viewports } = this.services;
    const { viewports: shown } = grid.getState();
    for (const [id, overlay] of this.overlays) {
      if (!shown.has(id) || viewports.getCornerstoneViewport(id) !== overlay.viewport) {
        overlay.destroy();
        this.overlays.delete(id);
      }
    }
    for (const id of shown.keys()) {
      const viewport = viewports.getCornerstoneViewport(id);
      if (viewport && !this.overlays.has(id)) {
        const overlay = new Overlay(viewport, session, this.maps, () => grid.setActiveViewportId(id));
        overlay.dispatch = () => this.look(id, overlay);
        this.overlays.set(id, overlay);
      }
    }
    const active = grid.getState().activeViewportId;
    const overlay = active ? this.overlays.get(active) : undefined;
    if (active && overlay) {
      this.look(active, overlay);
    }
  }

  private look(id: string, overlay: Overlay): void {
    if (this.services.viewportGridService.getState().activeViewportId === id) {
      void session.show(overlay.shown);
    }
  }
}

session.addEventListener('open', (event) => {
  const { StudyInstanceUID, SeriesInstanceUID } = (event as CustomEvent<Sample>).detail;
  const query = new URLSearchParams({ StudyInstanceUIDs: StudyInstanceUID ?? '' });
  if (SeriesInstanceUID) {
    query.set('SeriesInstanceUIDs', SeriesInstanceUID);
    query.set('initialSeriesInstanceUID', SeriesInstanceUID);
  }
  location.assign(`${viewerRoot}annotate?${query.toString()}`);
});

let overlays: Overlays | undefined;
const shortcuts = new Shortcuts(session);

const extension = {
  id: 'medclipsam',
  preRegistration: ({ servicesManager }: { servicesManager: ServicesManager }) => {
    definePanel(session);
    overlays = new Overlays(servicesManager.services);
  },
  onModeEnter: ({ extensionManager }: ModeContext) => {
    // OHIF calls it in all of its modes
    if (!location.pathname.startsWith(`${viewerRoot}annotate`)) {
      return;
    }
    const { exports } = extensionManager.getModuleEntry(
      '@ohif/extension-cornerstone.utilityModule.common',
    ) as CornerstoneModule;
    session.steps = exports.getCornerstoneLibraries().cornerstone.utilities.HistoryMemo.DefaultHistoryMemo;
    overlays?.start();
    shortcuts.start();
    void session.start();
  },
  onModeExit: () => {
    void session.flush();
    overlays?.stop();
    shortcuts.stop();
    session.stop();
  },
  getPanelModule: () => [
    {
      name: 'text',
      iconName: 'tab-segmentation',
      iconLabel: 'Annotate',
      label: 'Annotate by text',
      // an element of React 18, made by hand, whose type is a custom element: OHIF's React does not leave its bundle
      component: () => ({
        $$typeof: Symbol.for('react.element'),
        type: PANEL_TAG,
        key: null,
        ref: null,
        props: {},
        _owner: null,
        _store: {},
      }),
    },
  ],
};

export default extension;
