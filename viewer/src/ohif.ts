/**
 * What is used of OHIF 3.13 and of Cornerstone, as their public interfaces have it.
 */

import type { Steps } from './session';

export interface Subscription {
  unsubscribe(): void;
}

export interface PubSub<Events extends string> {
  readonly EVENTS: Record<Events, string>;
  subscribe(event: string, callback: () => void): Subscription;
}

export interface ViewportGridService extends PubSub<'ACTIVE_VIEWPORT_ID_CHANGED' | 'GRID_STATE_CHANGED'> {
  setActiveViewportId(id: string): void;
  getState(): { activeViewportId: string | null; viewports: Map<string, unknown> };
}

export type Point2 = [number, number];
export type Point3 = [number, number, number];

/** Cornerstone's viewport of a stack of images; other viewports have no current image. */
export interface Viewport {
  readonly id: string;
  readonly element: HTMLDivElement;
  getCurrentImageId?(): string | undefined;
  getImageIds?(): string[];
  setImageIdIndex?(index: number): Promise<unknown>;
  getImageData?():
    | { imageData: { indexToWorld(index: Point3): Point3; worldToIndex(world: Point3): Point3 } }
    | undefined;
  worldToCanvas(world: Point3): Point2;
  canvasToWorld(canvas: Point2): Point3;
}

export interface CornerstoneViewportService extends PubSub<'VIEWPORT_DATA_CHANGED'> {
  getCornerstoneViewport(viewportId: string): Viewport | null | undefined;
  destroy(): void;
}

export interface ToolGroupService {
  createToolGroupAndAddTools(id: string, tools: unknown): unknown;
  destroy(): void;
}

export interface CustomizationService {
  setCustomizations(changes: Record<string, unknown>): void;
}

export interface Services {
  viewportGridService: ViewportGridService;
  cornerstoneViewportService: CornerstoneViewportService;
  toolGroupService: ToolGroupService;
  syncGroupService: { destroy(): void };
  segmentationService: { destroy(): void };
  customizationService: CustomizationService;
}

export interface ServicesManager {
  services: Services;
}

export interface ToolsModule {
  exports: { toolNames: Record<string, string>; Enums: { MouseBindings: Record<string, number> } };
}

export interface CornerstoneModule {
  exports: {
    getCornerstoneLibraries(): { cornerstone: { utilities: { HistoryMemo: { DefaultHistoryMemo: Steps } } } };
  };
}

export interface ExtensionManager {
  getModuleEntry(name: string): unknown;
}

export interface ModeContext {
  servicesManager: ServicesManager;
  extensionManager: ExtensionManager;
}

/** Sent by Cornerstone to a viewport's element after each drawing: a new image, another zoom, another window. */
export const IMAGE_RENDERED = 'CORNERSTONE_IMAGE_RENDERED';
