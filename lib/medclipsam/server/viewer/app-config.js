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
  const PICTURES = ['CR', 'DX', 'MG', 'US']; // whose series may be a heap of single pictures and loops
  const ANNOTATED = ['CT', 'MR', ...PICTURES];

  // The panel's text box for the server; without the cookie it says port 8000, whatever the page's own is.
  document.cookie = `MONAILABEL_SERVER_URL=${SERVER}; path=/ohif; SameSite=Strict`;

  let table = {}; // the numbers of the server's labels by name, over all its models, as it told the panel
  const learned = {}; // the numbers of other names, in labels that were loaded
  let asked; // the image that a model was asked for last; another may be shown when the answer comes
  let mended; // the segments of an answer to clicks, until it is drawn
  let pages = new Map(); // of each image what has been done with its masks on this page, see pageOf
  let next; // the sample that waits for what is drawn here to be saved
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

  const labelmap = () => services.segmentationService.getSegmentation(SEGMENTATION)?.representationData?.Labelmap;

  function displaySetIn(viewportId) {
    const { displaySetInstanceUIDs } = services.viewportGridService.getState().viewports.get(viewportId) || {};
    return services.displaySetService.getDisplaySetByUID(displaySetInstanceUIDs?.[0]);
  }

  const activeViewport = () => services.viewportGridService.getState().activeViewportId;

  /** Return whether a series holds several pictures, each of which is an image of the server's. */
  function holdsPictures({ SeriesInstanceUID, Modality }) {
    if (!PICTURES.includes(Modality)) {
      return false;
    }
    const instances = services.displaySetService
      .getDisplaySetsBy(each => each.SeriesInstanceUID === SeriesInstanceUID)
      .flatMap(each => (each.instances || [each.instance]).map(instance => instance?.SOPInstanceUID));
    return new Set(instances).size > 1;
  }

  /**
   * Return the id that the server has for the image that is shown: its series, or itself where a series holds several
   * pictures.
   */
  function shownImage(viewportId = activeViewport()) {
    const displaySet = displaySetIn(viewportId);
    if (holdsPictures(displaySet)) {
      const viewport = services.cornerstoneViewportService.getCornerstoneViewport(viewportId);
      return imageMetadata(viewport.getCurrentImageId()).SOPInstanceUID;
    }
    return displaySet.SeriesInstanceUID;
  }

  /** Return the ids that the server has for the images that have masks on this page. */
  function imagesHere() {
    const ids = (labelmap()?.imageIds || []).map(id => {
      const instance = imageMetadata(cornerstone.cache.getImage(id)?.referencedImageId);
      return holdsPictures(instance) ? instance.SOPInstanceUID : instance.SeriesInstanceUID;
    });
    return [...new Set(ids)].filter(Boolean);
  }

  /**
   * Return what has been done with the masks of an image on this page: whether its label was looked for, whether a model
   * was asked, the checksum of what was loaded or saved last, and the segments of the targets that it says something of,
   * be it that they are absent.
   */
  function pageOf(image) {
    if (!pages.has(image)) {
      pages.set(image, { offered: false, prompted: false, kept: 0, segments: [] });
    }
    return pages.get(image);
  }

  /** Return the FNV-1a hash of labels; 0 for those with nothing in them. */
  function checksum(labels) {
    let hash = 0x811c9dc5;
    let any = 0;
    for (const label of labels) {
      hash = Math.imul(hash ^ label, 0x01000193);
      any |= label;
    }
    return any ? hash >>> 0 : 0;
  }

  /** Return the images whose masks here are other ones than the server gave or got. */
  const unsaved = () =>
    imagesHere().filter(image => checksum(readLabels(labelPlanes(image))) !== pageOf(image).kept);

  /**
   * Return the labelmap images of an image of the server's in the order in which it counts planes: along the normal of
   * the planes, or as the frames come where the planes have no place. None where it has no masks here.
   */
  function labelPlanes(image = shownImage()) {
    const planes = (labelmap()?.imageIds || [])
      .map(id => cornerstone.cache.getImage(id))
      .filter(({ referencedImageId }) => {
        const { SeriesInstanceUID, SOPInstanceUID } = imageMetadata(referencedImageId);
        return SeriesInstanceUID === image || SOPInstanceUID === image;
      })
      .map(each => ({ image: each, reference: each.referencedImageId, place: placeOf(each.referencedImageId) }));
    if (planes.length > 1 && planes.every(plane => plane.place)) {
      const { normal } = planes[0].place;
      planes.sort((a, b) => dot(a.place.position, normal) - dot(b.place.position, normal));
    }
    return planes;
  }

  const pixelsOf = plane => plane.image.voxelManager?.getScalarData?.() || plane.image.getPixelData();

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

  /** Return whether the segmentation has masks for a display set, which single images are given here. */
  async function hasMasks({ imageIds }) {
    const labels = labelmap();
    const missing = () => {
      const known = labels.imageIds.map(id => cornerstone.cache.getImage(id)?.referencedImageId);
      return imageIds.filter(id => !known.includes(id));
    };
    if (!labels?.imageIds || !imageIds?.length) {
      return false;
    }
    if (missing().length) {
      if (cornerstone.getRenderingEngines()[0].getVolumeViewports().length) {
        return false;
      }
      const made = await cornerstone.imageLoader.createAndCacheDerivedLabelmapImages(missing());
      const still = missing();
      labels.imageIds.push(...made.filter(each => still.includes(each.referencedImageId)).map(each => each.imageId));
    }
    return true;
  }

  const listOf = sequence => [sequence || []].flat();

  /** Return the UIDs of the segmentations that one takes the place of, by the code that the server gives. */
  function replacedBy({ ReferencedInstanceSequence }) {
    return listOf(ReferencedInstanceSequence)
      .filter(item => listOf(item.PurposeOfReferenceCodeSequence).some(code => code.CodeValue === 'SUPERSEDED'))
      .map(item => item.ReferencedSOPInstanceUID);
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
        getCompleteScalarDataArray: () => readLabels(labelPlanes(asked)),
        setCompleteScalarDataArray: labels => {
          const planes = labelPlanes(asked);
          if (!planes.length) {
            tell('This page has the masks of another series; open one of its own for this series.', 'error', 15000);
            return;
          }
          writeLabels(mended || labels, planes);
          // the brush goes on with what was found, not with the first of all labels
          const index = mended ? 0 : labels.find(Boolean);
          mended = undefined;
          if (index) {
            services.segmentationService.setActiveSegment(id, index);
          }
        },
      };
      return Object.create(volume, { voxelManager: { value: voxelManager } });
    });
    mend(services.segmentationService, 'createLabelmapForDisplaySet', original => async (displaySet, options) => {
      if (options?.segmentationId !== SEGMENTATION) {
        return original(displaySet, options);
      }
      Object.entries(options.segments).forEach(([index, segment], place) => {
        segment.color = [...COLOURS[place % COLOURS.length], 255];
        if (segment.label === 'background') {
          // nothing would be saved of what is painted with it
          delete options.segments[index];
        }
      });
      Object.values(options.segments)[0].active = true;
      // connecting once more is no reason to lose what has been drawn
      const id = (await hasMasks(displaySet)) ? SEGMENTATION : await original(displaySet, options);
      offerLabel();
      return id;
    });
    // a picture shown later, as each radiograph of a series is shown by itself, gets masks as well
    const { EVENTS } = services.cornerstoneViewportService;
    services.cornerstoneViewportService.subscribe(EVENTS.VIEWPORT_DATA_CHANGED, async ({ viewportId }) => {
      const displaySet = displaySetIn(viewportId);
      const has = displaySet && displaySet.Modality !== 'SEG' && (await hasMasks(displaySet));
      if (has && !services.segmentationService.getSegmentationRepresentations(viewportId).length) {
        services.segmentationService.addSegmentationRepresentation(viewportId, { segmentationId: SEGMENTATION });
      }
      if (has) {
        offerLabel(viewportId);
      }
      // of pictures that are scrolled through each has a label of its own
      const { element } = services.cornerstoneViewportService.getCornerstoneViewport(viewportId) || {};
      element?.addEventListener(cornerstone.Enums.Events.STACK_NEW_IMAGE, offerLabelOfNewImage);
    });
    // without a place in space any picture of the same size is taken for the one that a mask is of
    const { prototype } = cornerstone.StackViewport;
    if (!prototype.matchImagesForOverlay.mendedBy) {
      const { matchImagesForOverlay } = prototype;
      prototype.matchImagesForOverlay = function (imageId, overlay) {
        const reference = cornerstone.cache.getImage(overlay)?.referencedImageId;
        if (reference && !placeOf(reference)) {
          return reference === imageId ? imageId : undefined;
        }
        return matchImagesForOverlay.call(this, imageId, overlay);
      };
      prototype.matchImagesForOverlay.mendedBy = 'medclipsam';
    }
    // of a series of segmentations it shows the first, which may be one that a later one takes the place of; one without
    // a place in space it cannot show, and ends with an empty page
    mend(services.displaySetService, 'makeDisplaySetForInstances', original => (instances, settings) => {
      const replaced = new Set(instances.flatMap(replacedBy));
      const isShown = ({ SOPInstanceUID, Modality, SharedFunctionalGroupsSequence }) =>
        !replaced.has(SOPInstanceUID) &&
        (Modality !== 'SEG' || listOf(SharedFunctionalGroupsSequence).some(group => group.PixelMeasuresSequence));
      return original(instances.filter(isShown), settings);
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

  const offerLabelOfNewImage = ({ detail }) => offerLabel(detail.viewportId);

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

  /** Return the voxel of a click on a stack of images; its plane is -1 where it is in none of the image that is shown. */
  function voxelOf(point, viewportId) {
    const viewport = services.cornerstoneViewportService.getCornerstoneViewport(viewportId);
    const planes = labelPlanes();
    const reference = clicked.get(point)?.metadata.referencedImageId;
    const plane = planes.findIndex(each => each.reference === reference);
    // as it is drawn: image coordinates of the library begin at a pixel's corner and mix up its two spacings
    const [i, j] = viewport.getImageData().imageData.worldToIndex(point);
    return [i, j, plane];
  }

  /* ---- labels that the server has already ---- */

  // By their tags, the first that is there counts: what a person has saved, then what models have made ahead.
  const SAVED = {
    shown: 'The saved label of this image is shown; correct it and save.',
    empty: 'The saved label of this image is empty: it says that none of the targets is here.',
  };
  const MADE_AHEAD = {
    shown: 'A proposal that was made ahead is shown, and nobody has looked at it yet; correct it and save.',
    empty: 'A proposal that was made ahead says that none of the targets is here; nobody has looked at it yet.',
  };
  const TAGS = [
    ['final', SAVED],
    ['network', MADE_AHEAD],
    ['original', MADE_AHEAD],
  ];

  async function ask(path, params) {
    // what another annotator has saved meanwhile counts
    const answer = await fetch(`${SERVER}${path}?${new URLSearchParams(params)}`, { cache: 'no-store' });
    if (!answer.ok) {
      throw new Error(sentenceOf(await answer.text()) || `The server answers ${answer.status}.`);
    }
    return answer;
  }

  /** Return the numbers of a label's names, as it was saved or made with them. */
  function namesOf({ label_info: listed, label_names: names, params }) {
    const entries = Array.isArray(listed) ? listed.map(({ name, idx }) => [name, idx]) : [];
    return { ...params?.label_names, ...names, ...Object.fromEntries(entries) };
  }

  /** Return size (columns, rows, planes) and voxels of a label in an NRRD file as the server writes it. */
  async function readNrrd(file) {
    const header = new TextDecoder().decode(file.subarray(0, headerEnd(file)));
    const [columns, rows, planes = 1] = /^sizes: *(.+)$/m.exec(header)[1].trim().split(/ +/).map(Number);
    const packed = new Blob([voxelsOf(file)]).stream();
    const stream = /^encoding: *gzip/m.test(header) ? packed.pipeThrough(new DecompressionStream('gzip')) : packed;
    return { size: [columns, rows, planes], labels: new Uint8Array(await new Response(stream).arrayBuffer()) };
  }

  /**
   * Load the label that the server has of the image in a viewport into the image's masks, unless something has been
   * drawn in them on this page, or a model was asked to.
   */
  async function offerLabel(viewportId = activeViewport()) {
    if (!labelmap() || !displaySetIn(viewportId)) {
      return;
    }
    const image = shownImage(viewportId);
    const page = pageOf(image);
    const isDrawnOn = () => page.prompted || readLabels(labelPlanes(image)).some(Boolean);
    if (page.offered || !labelPlanes(image).length || isDrawnOn()) {
      return;
    }
    page.offered = true;
    try {
      const tags = await (await ask('datastore/image/labels', { image })).json();
      const [tag, sentences] = TAGS.find(([name]) => name in tags) || [];
      if (!tag) {
        return;
      }
      const label = { label: tags[tag], tag };
      const info = await (await ask('datastore/label/info', label)).json();
      const answer = await ask('datastore/label', { ...label, result_extension: '.nrrd' });
      const { size, labels } = await readNrrd(new Uint8Array(await answer.arrayBuffer()));
      const planes = labelPlanes(image);
      if (page !== pages.get(image) || !planes.length) {
        // another study has been opened
        return;
      }
      if (isDrawnOn()) {
        tell('This image has a label already, which is not shown, since its mask has been drawn on.', 'warning', 10000);
        return;
      }
      const { columns, rows } = planes[0].image;
      const own = [columns, rows, planes.length];
      if (size.some((length, axis) => length !== own[axis])) {
        throw new Error(`It has ${size.join(' x ')} voxels, the image ${own.join(' x ')}.`);
      }
      const names = namesOf(info);
      const segments = segmentsOf(labels, new Uint8Array(256), names);
      writeLabels(segments, planes);
      page.kept = checksum(segments);
      page.segments = segmentsNamed(Object.keys(names));
      const first = segments.find(Boolean);
      if (first) {
        services.segmentationService.setActiveSegment(SEGMENTATION, first);
      }
      const { SEGMENTATION_DATA_MODIFIED } = cornerstoneTools.Enums.Events;
      cornerstone.triggerEvent(cornerstone.eventTarget, SEGMENTATION_DATA_MODIFIED, { segmentationId: SEGMENTATION });
      tell(first ? sentences.shown : sentences.empty, 'info', 10000);
    } catch (error) {
      page.offered = false;
      tell(`The label of this image cannot be shown. ${error.message}`, 'error', 15000);
    }
  }

  /* ---- saving ---- */

  function tell(message, type = 'info', duration = 6000) {
    services?.uiNotificationService.show({ title: 'medclipsam', message, type, duration });
  }

  /** Return the NRRD file of labels on planes; without a place in space where the planes have none. */
  async function nrrd(labels, planes) {
    const { rows, columns } = planes[0].image;
    const header = [
      'NRRD0004',
      'type: uint8',
      'dimension: 3',
      `sizes: ${columns} ${rows} ${planes.length}`,
      'encoding: gzip',
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
    const packed = await new Response(new Blob([labels]).stream().pipeThrough(new CompressionStream('gzip'))).blob();
    return new Blob([`${header.join('\n')}\n\n`, packed], { type: 'application/octet-stream' });
  }

  /** Return the server's number for each segment, 0 for what is none of the labels; and the names of those numbers. */
  function numbersOf(indices) {
    const { segments } = services.segmentationService.getSegmentation(SEGMENTATION);
    const taken = new Set(Object.values(table));
    const numbers = new Uint8Array(256);
    const names = [];
    for (const index of indices) {
      const name = segments[index]?.label || `segment ${index}`;
      if (index && name !== 'background') {
        let number = table[name] || (taken.has(learned[name]) ? 0 : learned[name]);
        for (let free = 1; !number; free++) {
          number = taken.has(free) ? 0 : free;
        }
        taken.add(number);
        numbers[index] = number;
        names.push({ name, idx: number });
      }
    }
    return { numbers, names };
  }

  const segmentsNamed = names =>
    Object.values(services.segmentationService.getSegmentation(SEGMENTATION).segments)
      .filter(({ label }) => names.includes(label))
      .map(({ segmentIndex }) => segmentIndex);

  async function save() {
    const planes = labelPlanes();
    if (!planes.length) {
      tell('There is no label to save yet; connect in the MONAI Label panel first.', 'warning');
      return;
    }
    const image = shownImage();
    try {
      const found = readLabels(planes);
      const page = pageOf(image);
      // what the label before said to be absent stays so, and what has been erased of it is absent now
      const { numbers, names: labelInfo } = numbersOf(new Set([...found, ...page.segments]));
      const spoken = labelInfo.filter(({ idx }) => page.segments.some(index => numbers[index] === idx));
      const labelNames = Object.fromEntries(spoken.map(({ name, idx }) => [name, idx]));
      const form = new FormData();
      form.append('params', JSON.stringify({ label_info: labelInfo, label_names: labelNames }));
      form.append('label', await nrrd(found.map(index => numbers[index]), planes), 'label.nrrd');
      const answer = await fetch(`${SERVER}datastore/label?image=${encodeURIComponent(image)}&tag=final`, {
        method: 'PUT',
        body: form,
      });
      if (!answer.ok) {
        throw new Error((await answer.json()).detail || `The server answers ${answer.status}.`);
      }
      page.kept = checksum(found);
      const there = new Set(found.map(index => numbers[index]));
      const names = labelInfo.filter(({ idx }) => there.has(idx)).map(({ name }) => name).join(', ');
      tell(names ? `Saved: ${names}.` : 'Saved: an empty label, for none of the targets is here.', 'success');
      if (next && !unsaved().length) {
        await openStudyOf(next);
      }
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

  const headerEnd = file => file.findIndex((byte, place) => byte === 10 && file[place + 1] === 10);

  /** Return the voxels of an NRRD file, packed where it is. */
  const voxelsOf = file => file.subarray(headerEnd(file) + 2);

  /**
   * Return the segments of a mask in the server's numbers, `sent` being those that it had for what was on the screen,
   * and `names` the numbers of the names that came with the mask. What has a name that is none of the panel's becomes a
   * segment of its own.
   */
  function segmentsOf(mask, sent, names = {}) {
    const { segmentationService } = services;
    const { segments } = segmentationService.getSegmentation(SEGMENTATION);
    const lookup = new Uint8Array(256);
    Object.values(segments).forEach(({ segmentIndex, label }) => {
      lookup[names[label] || table[label] || 0] = segmentIndex;
    });
    sent.forEach((number, index) => {
      lookup[number] = number ? index : 0;
    });
    lookup[0] = 0;
    for (const number of new Set(mask)) {
      if (number && !lookup[number]) {
        const label = Object.keys(names).find(name => names[name] === number) || `label ${number}`;
        const segmentIndex = Math.max(...Object.keys(segments).map(Number), ...lookup) + 1;
        const color = [...COLOURS[segmentIndex % COLOURS.length], 255];
        segmentationService.addSegment(SEGMENTATION, { segmentIndex, label, color });
        learned[label] = number;
        lookup[number] = segmentIndex;
      }
    }
    return mask.map(number => lookup[number]);
  }

  /** Return the params of clicks without those that are not in the image that is shown. */
  function clicksHere(params) {
    const here = value => (Array.isArray(value) ? value.filter(point => !(point[2] < 0)) : value);
    return Object.fromEntries(Object.entries(params).map(([name, value]) => [name, here(value)]));
  }

  /** Add what is on the screen to the form of a request, for clicks to mend; return the segments' numbers in it. */
  async function addScreen(form) {
    form.set('params', JSON.stringify(clicksHere(JSON.parse(form.get('params')))));
    const planes = labelPlanes();
    if (!planes.length) {
      return new Uint8Array(256);
    }
    const present = readLabels(planes);
    const { numbers } = numbersOf(new Set(present));
    form.append('label', await nrrd(present.map(index => numbers[index]), planes), 'label.nrrd');
    return numbers;
  }

  /* ---- the next sample ---- */

  /** Open the study of the next sample, which the panel only tells, unless something drawn here would be lost. */
  async function goOn(sample) {
    next = undefined;
    if (!sample.id) {
      tell('No image is left: all are labelled, or kept for others.', 'info', 10000);
    } else if (sample.id === shownImage()) {
      tell('The next image is the one that is shown.', 'info', 10000);
    } else if (unsaved().length) {
      next = sample;
      tell('What is drawn here is not saved yet. Save it, and the next image is opened.', 'warning', 15000);
    } else {
      await openStudyOf(sample);
    }
  }

  async function openStudyOf({ StudyInstanceUID, SeriesInstanceUID, SOPInstanceUID }) {
    const address = new URL('/ohif/monai-label', SERVER);
    address.searchParams.set('StudyInstanceUIDs', StudyInstanceUID);
    if (await holdsSeveral(StudyInstanceUID)) {
      address.searchParams.set('SeriesInstanceUIDs', SeriesInstanceUID);
    }
    if (SOPInstanceUID) {
      // which of the series' pictures is shown first
      address.searchParams.set('initialSopInstanceUID', SOPInstanceUID);
    }
    window.location.assign(address);
  }

  /** Return whether a study holds several series that can be annotated. */
  async function holdsSeveral(study) {
    const answer = await ask(`proxy/dicom/qido/studies/${study}/series`, {});
    const series = answer.status === 204 ? [] : await answer.json();
    return series.filter(each => ANNOTATED.includes(each['00080060']?.Value?.[0])).length > 1;
  }

  // The panel says of a failed request only that it failed, and nothing of what was found. Clicks it sends without what
  // was painted, and of their answer it draws no more than the labels that were clicked for.
  const { open, send } = XMLHttpRequest.prototype;
  XMLHttpRequest.prototype.open = function (method, url, ...more) {
    const address = new URL(url, window.location);
    const infers = address.href.startsWith(`${SERVER}infer/`);
    if (infers) {
      // the panel knows series only
      asked = shownImage();
      address.searchParams.set('image', asked);
      this.page = pageOf(asked);
      this.page.prompted = true;
    }
    this.clicks = address.href.startsWith(`${SERVER}infer/refine?`);
    this.numbers = new Uint8Array(256);
    // here and not as it is sent, to be before the panel
    this.addEventListener('loadend', () => {
      if (this.responseURL === `${SERVER}info/` && this.status === 200) {
        const { models } = JSON.parse(this.responseText);
        table = Object.assign({}, ...Object.values(models).map(model => model.labels));
      }
      if (!this.responseURL.startsWith(`${SERVER}infer/`) && !this.responseURL.startsWith(`${SERVER}activelearning/`)) {
        return;
      }
      mended = undefined;
      if (this.status >= 400) {
        tell(sentenceOf(this.response) || `The server answers ${this.status}.`, 'error', 15000);
        return;
      }
      if (this.responseURL.startsWith(`${SERVER}activelearning/`)) {
        goOn(JSON.parse(this.responseText)).catch(error => tell(error.message, 'error', 15000));
        return;
      }
      if (this.clicks) {
        mended = segmentsOf(voxelsOf(new Uint8Array(this.response)), this.numbers);
      } else {
        // the mask that was there before is replaced, and with it what was said of its targets
        this.page.segments = [];
      }
      if (this.getResponseHeader('X-Sentence')) {
        tell(decodeURIComponent(this.getResponseHeader('X-Sentence')), 'info', 10000);
      }
    });
    return open.call(this, method, infers ? address.href : url, ...more);
  };
  XMLHttpRequest.prototype.send = function (body) {
    if (!this.clicks) {
      return send.call(this, body);
    }
    addScreen(body)
      .then(numbers => {
        this.numbers = numbers;
        send.call(this, body);
      })
      .catch(error => tell(error.message, 'error', 15000));
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
          valid: modalities.split('\\').some(modality => ANNOTATED.includes(modality)),
          description: 'For CT, MR, X-ray and ultrasound',
        }),
        onModeEnter: context => {
          ({ services } = context.servicesManager);
          ({ cornerstone, cornerstoneTools } = context.extensionManager
            .getModuleEntry('@ohif/extension-cornerstone.utilityModule.common')
            .exports.getCornerstoneLibraries());
          made.onModeEnter(context);
          pages = new Map();
          next = undefined;
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
              // on the other side than the MONAI Label panel, which forgets all it knows when another tab is chosen
              layout.props.leftPanels = [
                ...layout.props.leftPanels,
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
