/*
 * Configuration of the bundled OHIF viewer (3.10), served in place of the bundle's own app-config.js.
 *
 * OHIF's configuration may bring extensions and modes. This one brings what the bundled MONAI Label mode lacks:
 * single images and series without geometry (radiographs, ultrasound) with overlay and clicks, brush and eraser, a
 * button that saves the label, and the server's own sentences. The bundle's files are served as they are.
 */
(() => {
  'use strict';

  const SEGMENTATION = '1'; // the one that the MONAI Label panel makes and fills
  const PROBE = 'ProbeMONAILabel';
  const SERVER = `${window.location.origin}/`;

  // The panel's text box for the server; without the cookie it says port 8000, whatever the page's own is.
  document.cookie = `MONAILABEL_SERVER_URL=${SERVER}; path=/ohif; SameSite=Strict`;

  let services; // OHIF's, once a mode is entered
  let cornerstone;
  let cornerstoneTools;

  /* ---- images and labels ---- */

  const imageMetadata = imageId => cornerstone.metaData.get('instance', imageId) || {};
  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
  const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];

  /** Return where the image with this id lies: its position, its axes and its spacing; undefined for one without. */
  function placeOf(imageId) {
    // not the image plane module, which makes up what is missing
    const { ImagePositionPatient, ImageOrientationPatient, PixelSpacing } = imageMetadata(imageId);
    if (ImagePositionPatient?.length !== 3 || ImageOrientationPatient?.length !== 6) {
      return undefined;
    }
    const orientation = [...ImageOrientationPatient].map(Number);
    const [row, column] = [orientation.slice(0, 3), orientation.slice(3)];
    const [betweenRows, betweenColumns] = [...(PixelSpacing || [1, 1])].map(Number);
    return {
      position: [...ImagePositionPatient].map(Number),
      row,
      column,
      normal: cross(row, column),
      spacing: [betweenColumns, betweenRows],
    };
  }

  /**
   * Return the labelmap images of the segmentation in the order in which the server counts planes: along the normal of
   * the planes, or as the frames come where the planes have no place.
   */
  function labelPlanes() {
    const segmentation = services.segmentationService.getSegmentation(SEGMENTATION);
    const imageIds = segmentation?.representationData?.Labelmap?.imageIds || [];
    const planes = imageIds.map(id => {
      const image = cornerstone.cache.getImage(id);
      return { image, reference: image.referencedImageId, place: placeOf(image.referencedImageId) };
    });
    if (planes.length > 1 && planes.every(plane => plane.place)) {
      const { normal } = planes[0].place;
      planes.sort((a, b) => dot(a.place.position, normal) - dot(b.place.position, normal));
    }
    return planes;
  }

  const pixelsOf = plane => plane.image.voxelManager?.getScalarData?.() || plane.image.getPixelData();

  const seriesOf = planes => planes.length && imageMetadata(planes[0].reference).SeriesInstanceUID;

  function shownSeries() {
    const { viewports, activeViewportId } = services.viewportGridService.getState();
    const [displaySet] = viewports.get(activeViewportId).displaySetInstanceUIDs;
    return services.displaySetService.getDisplaySetByUID(displaySet).SeriesInstanceUID;
  }

  function readLabels(planes) {
    const size = planes.length ? pixelsOf(planes[0]).length : 0;
    const labels = new Uint8Array(size * planes.length);
    planes.forEach((plane, k) => labels.set(pixelsOf(plane), k * size));
    return labels;
  }

  function writeLabels(labels, planes) {
    const size = planes.length ? pixelsOf(planes[0]).length : 0;
    if (labels.length !== size * planes.length) {
      throw new Error(`The mask has ${labels.length} voxels, the series ${size * planes.length}.`);
    }
    planes.forEach((plane, k) => pixelsOf(plane).set(labels.subarray(k * size, (k + 1) * size)));
  }

  /* ---- what the panel gets wrong ---- */

  function mend(target, name, replacement) {
    const original = target[name];
    if (!original.mendedBy) {
      target[name] = replacement(original.bind(target));
      target[name].mendedBy = 'medclipsam';
    }
  }

  const clicked = new WeakMap(); // a click's point, as the panel hands it round -> its annotation

  function mendPanel() {
    // the panel reads and writes masks through a volume, which a stack of images has none of
    mend(services.segmentationService, 'getLabelmapVolume', original => id => {
      const volume = original(id);
      if (id !== SEGMENTATION || !services.segmentationService.getSegmentation(id)) {
        return volume;
      }
      const voxelManager = {
        getCompleteScalarDataArray: () => readLabels(labelPlanes()),
        setCompleteScalarDataArray: labels => {
          const planes = labelPlanes();
          if (seriesOf(planes) !== shownSeries()) {
            tell('This page has the masks of another series; open one of its own for this series.', 'error', 15000);
            return;
          }
          writeLabels(labels, planes);
          // the brush goes on with what was found, not with the first of all labels
          const index = labels.find(Boolean);
          if (index) {
            services.segmentationService.setActiveSegment(id, index);
          }
        },
      };
      return Object.create(volume, { voxelManager: { value: voxelManager } });
    });
    mend(services.segmentationService, 'createLabelmapForDisplaySet', original => (displaySet, options) => {
      if (options?.segmentationId === SEGMENTATION) {
        Object.values(options.segments).forEach((segment, place) => {
          segment.color = [...COLOURS[place % COLOURS.length], 255];
        });
      }
      return original(displaySet, options);
    });
    // its layout of three planes stays empty without a volume, and both show a saved label's SEG in the image's place
    mend(services.hangingProtocolService, 'run', original => (studies, protocol, options) => {
      const images = (studies.displaySets || []).filter(displaySet => displaySet.Modality !== 'SEG');
      if (protocol !== 'mpr' || !images.length) {
        return original(studies, protocol, options);
      }
      const volumes = images.some(displaySet => displaySet.isReconstructable);
      return original({ ...studies, displaySets: images }, volumes ? 'mpr' : 'default', options);
    });
    // it looks for clicks in whatever else has been drawn
    const annotations = cornerstoneTools.annotation.state.getAnnotationManager();
    mend(annotations, 'saveAnnotations', original => (group, tool) => {
      const saved = original(group, tool);
      if (group || tool !== PROBE) {
        return saved;
      }
      const probes = Object.entries(saved).filter(([, tools]) => tools[PROBE]?.length);
      for (const [, tools] of probes) {
        tools[PROBE].forEach(annotation => clicked.set(annotation.data.handles.points[0], annotation));
      }
      return Object.fromEntries(probes);
    });
    // it asks the viewport's volume for the voxel of a click
    mend(services.cornerstoneViewportService, 'getViewportInfo', original => viewportId => {
      const info = original(viewportId);
      const [data] = info?.viewportData?.data || [];
      if (data && !data.volume && data.imageIds) {
        Object.defineProperty(data, 'volume', {
          configurable: true,
          enumerable: false,
          value: { imageData: { worldToIndex: point => voxelOf(point, viewportId) } },
        });
      }
      return info;
    });
  }

  // Bright ones far from one another; the panel's own are nearly black for some labels.
  const COLOURS = [
    [230, 25, 75],
    [60, 180, 75],
    [255, 225, 25],
    [0, 130, 200],
    [245, 130, 48],
    [145, 30, 180],
    [70, 240, 240],
    [240, 50, 230],
    [210, 245, 60],
    [250, 190, 212],
    [0, 128, 128],
    [170, 110, 40],
  ];

  /** Return the voxel of a click on a stack of images. */
  function voxelOf(point, viewportId) {
    const viewport = services.cornerstoneViewportService.getCornerstoneViewport(viewportId);
    const planes = labelPlanes();
    const reference = clicked.get(point)?.metadata.referencedImageId;
    const plane = planes.findIndex(each => each.reference === reference);
    // as it is drawn: image coordinates of the library begin at a pixel's corner and mix up its two spacings
    const [i, j] = viewport.getImageData().imageData.worldToIndex(point);
    return [i, j, Math.max(plane, 0)];
  }

  /* ---- saving ---- */

  function tell(message, type = 'info', duration = 6000) {
    services?.uiNotificationService.show({ title: 'medclipsam', message, type, duration });
  }

  /** Return the NRRD file of labels on planes; without a place in space where the planes have none. */
  function nrrd(labels, planes) {
    const { rows, columns } = planes[0].image;
    const header = [
      'NRRD0004',
      'type: uint8',
      'dimension: 3',
      `sizes: ${columns} ${rows} ${planes.length}`,
      'encoding: raw',
    ];
    const first = planes[0].place;
    if (first) {
      const last = planes[planes.length - 1].place.position;
      const step = planes.length > 1 ? last.map((x, axis) => (x - first.position[axis]) / (planes.length - 1)) : first.normal;
      const axes = [first.row.map(x => x * first.spacing[0]), first.column.map(x => x * first.spacing[1]), step];
      header.push(
        'space: left-posterior-superior',
        `space directions: ${axes.map(axis => `(${axis.join(',')})`).join(' ')}`,
        `space origin: (${first.position.join(',')})`
      );
    }
    return new Blob([`${header.join('\n')}\n\n`, labels], { type: 'application/octet-stream' });
  }

  /** Return the server's labels by name, over all its models. */
  async function labelTable() {
    const answer = await fetch(`${SERVER}info/`);
    if (!answer.ok) {
      throw new Error(`The server answers ${answer.status}.`);
    }
    const { models } = await answer.json();
    return Object.assign({}, ...Object.values(models).map(model => model.labels));
  }

  async function save() {
    const segmentation = services.segmentationService.getSegmentation(SEGMENTATION);
    const planes = labelPlanes();
    if (!segmentation || !planes.length) {
      tell('There is no label to save yet; connect in the MONAI Label panel first.', 'warning');
      return;
    }
    try {
      const table = await labelTable();
      const found = readLabels(planes);
      const taken = new Set(Object.values(table));
      const numbers = new Uint8Array(256);
      const labelInfo = [];
      for (const index of new Set(found)) {
        if (index) {
          const name = segmentation.segments[index]?.label || `segment ${index}`;
          let number = table[name];
          for (let free = 1; !number && name !== 'background'; free++) {
            number = taken.has(free) ? 0 : free;
          }
          if (number) {
            taken.add(number);
            numbers[index] = number;
            labelInfo.push({ name, idx: number });
          }
        }
      }
      const form = new FormData();
      form.append('params', JSON.stringify({ label_info: labelInfo }));
      form.append('label', nrrd(found.map(index => numbers[index]), planes), 'label.nrrd');
      const answer = await fetch(`${SERVER}datastore/label?image=${encodeURIComponent(seriesOf(planes))}&tag=final`, {
        method: 'PUT',
        body: form,
      });
      if (!answer.ok) {
        throw new Error((await answer.json()).detail || `The server answers ${answer.status}.`);
      }
      const names = labelInfo.map(label => label.name).join(', ');
      tell(names ? `Saved: ${names}.` : 'Saved: an empty label, for none of the targets is here.', 'success');
    } catch (error) {
      tell(`Not saved. ${error.message}`, 'error', 15000);
    }
  }

  /* ---- the server's sentences ---- */

  /** Return the sentence of a refusal, whatever type of answer was asked for. */
  function sentenceOf(response) {
    if (response instanceof ArrayBuffer || typeof response === 'string') {
      const text = typeof response === 'string' ? response : new TextDecoder().decode(response);
      try {
        return JSON.parse(text).detail;
      } catch {
        return text.slice(0, 200);
      }
    }
    return response?.detail;
  }

  // The panel says of a failed request only that it failed, and nothing of what was found.
  const { send } = XMLHttpRequest.prototype;
  XMLHttpRequest.prototype.send = function (...body) {
    this.addEventListener('loadend', () => {
      if (!this.responseURL.startsWith(`${SERVER}infer/`) && !this.responseURL.startsWith(`${SERVER}activelearning/`)) {
        return;
      }
      if (this.status >= 400) {
        tell(sentenceOf(this.response) || `The server answers ${this.status}.`, 'error', 15000);
      } else if (this.getResponseHeader('X-Sentence')) {
        tell(decodeURIComponent(this.getResponseHeader('X-Sentence')), 'info', 10000);
      }
    });
    return send.apply(this, body);
  };

  /* ---- extension and mode ---- */

  const brush = (id, icon, label, toolNames) => ({
    id,
    icon,
    label,
    evaluate: { name: 'evaluate.cornerstone.segmentation', toolNames, disabledText: 'Connect first.' },
    options: [
      {
        name: 'Radius (mm)',
        id: `${id}-radius`,
        type: 'range',
        min: 0.5,
        max: 99.5,
        step: 0.5,
        value: 10,
        commands: { commandName: 'setBrushSize', commandOptions: { toolNames } },
      },
      {
        name: 'Shape',
        id: `${id}-shape`,
        type: 'radio',
        value: toolNames[0],
        values: [
          { value: toolNames[0], label: 'Circle' },
          { value: toolNames[1], label: 'Sphere' },
        ],
        commands: 'setToolActiveToolbar',
      },
    ],
  });

  const buttons = [
    {
      id: 'BrushTools',
      uiType: 'ohif.buttonGroup',
      props: {
        groupId: 'BrushTools',
        items: [
          brush('Brush', 'icon-tool-brush', 'Brush', ['CircularBrush', 'SphereBrush']),
          brush('Eraser', 'icon-tool-eraser', 'Eraser', ['CircularEraser', 'SphereEraser']),
        ],
      },
    },
    {
      id: 'SaveLabel',
      uiType: 'ohif.radioGroup',
      props: {
        icon: 'icon-upload',
        label: 'Save label',
        tooltip: 'Save the label on the server',
        commands: 'saveLabel',
        evaluate: 'evaluate.action',
      },
    },
  ];

  const TOOLBAR = ['SaveLabel', 'WindowLevel', 'Pan', 'Zoom', 'Capture', 'Layout', 'Crosshairs', 'MoreTools'];

  const extension = {
    id: 'medclipsam',
    getCommandsModule: () => ({
      definitions: { saveLabel: { commandFn: save } },
      defaultContext: 'DEFAULT',
    }),
  };

  const withAnnotation = mode => ({
    ...mode,
    modeFactory: options => {
      const made = mode.modeFactory(options);
      const [route] = made.routes;
      return {
        ...made,
        isValidMode: ({ modalities }) => ({
          valid: modalities.split('\\').some(modality => ['CT', 'MR', 'CR', 'DX', 'MG', 'US'].includes(modality)),
          description: 'For CT, MR, X-ray and ultrasound',
        }),
        onModeEnter: context => {
          ({ services } = context.servicesManager);
          ({ cornerstone, cornerstoneTools } = context.extensionManager
            .getModuleEntry('@ohif/extension-cornerstone.utilityModule.common')
            .exports.getCornerstoneLibraries());
          made.onModeEnter(context);
          const { toolbarService } = services;
          toolbarService.addButtons(buttons);
          // sections grow each time that a mode is entered
          toolbarService.state.buttonSections = {};
          toolbarService.createButtonSection('primary', TOOLBAR);
          toolbarService.createButtonSection('segmentationToolbox', ['BrushTools']);
          mendPanel();
        },
        routes: [
          {
            ...route,
            layoutTemplate: async context => {
              const layout = await route.layoutTemplate(context);
              layout.props.rightPanels = [
                ...layout.props.rightPanels,
                '@ohif/extension-cornerstone.panelModule.panelSegmentationWithTools',
              ];
              return layout;
            },
          },
        ],
      };
    },
  });

  window.config = async ({ peerImport }) => ({
    routerBasename: '/ohif/',
    showStudyList: true,
    extensions: [extension],
    modes: [withAnnotation(await peerImport('@ohif/mode-monai-label'))],
    showWarningMessageForCrossOrigin: true,
    showCPUFallbackMessage: true,
    showLoadingIndicator: true,
    strictZSpacingForVolumeViewport: true,
    defaultDataSourceName: 'dicomweb',
    useSharedArrayBuffer: 'FALSE',
    dataSources: [
      {
        namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
        sourceName: 'dicomweb',
        configuration: {
          friendlyName: 'DICOMweb server of the studies',
          name: 'studies',
          wadoUriRoot: '/proxy/dicom/wado',
          qidoRoot: '/proxy/dicom/qido',
          wadoRoot: '/proxy/dicom/wado',
          qidoSupportsIncludeField: true,
          supportsReject: false,
          imageRendering: 'wadors',
          thumbnailRendering: 'wadors',
          enableStudyLazyLoad: false,
          supportsFuzzyMatching: true,
          supportsWildcard: true,
          dicomUploadEnabled: true,
          bulkDataURI: { enabled: true },
        },
      },
    ],
  });
  window.config.defaultDataSourceName = 'dicomweb';
})();
