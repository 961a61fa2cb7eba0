/**
 * OHIF's configuration. It is a classic script, which OHIF's page loads first: it must import and export nothing.
 */
interface Configured {
  config: unknown;
  PUBLIC_URL: string;
}

{
  const page = window as unknown as Configured;
  const viewer = page.PUBLIC_URL;
  const server = viewer.replace(/viewer\/$/, '');
  const dicomWeb = `${location.origin}${server}dicom-web`;
  page.config = {
    name: 'medclipsam',
    routerBasename: viewer.replace(/\/$/, ''),
    extensions: [`${viewer}medclipsam/extension.js`],
    modes: [`${viewer}medclipsam/mode.js`],
    customizationService: {
      // of a folder's pictures, which are of no modality, a player would hide a part
      autoCineModalities: { $set: ['US'] },
      'workList.onStudyDoubleClick': {
        $set: { commandName: 'launchDefaultMode', commandOptions: { workflowId: 'medclipsam.annotate' } },
      },
    },
    showStudyList: true,
    maxNumberOfWebWorkers: 3,
    showLoadingIndicator: true,
    showWarningMessageForCrossOrigin: false,
    showCPUFallbackMessage: false,
    strictZSpacingForVolumeViewport: false,
    investigationalUseDialog: { option: 'never' },
    disableConfirmationPrompts: true,
    maxNumRequests: { interaction: 20, thumbnail: 5, prefetch: 10 },
    studyPrefetcher: { enabled: false },
    defaultDataSourceName: 'studies',
    dataSources: [
      {
        namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
        sourceName: 'studies',
        configuration: {
          friendlyName: 'Studies of this server',
          name: 'studies',
          qidoRoot: dicomWeb,
          wadoRoot: dicomWeb,
          wadoUriRoot: dicomWeb,
          qidoSupportsIncludeField: false,
          supportsReject: false,
          supportsStow: false,
          imageRendering: 'wadors',
          thumbnailRendering: 'rendered',
          enableStudyLazyLoad: true,
          supportsFuzzyMatching: false,
          supportsWildcard: true,
          staticWado: false,
          singlepart: 'bulkdata,video,pdf',
          bulkDataURI: { enabled: true, relativeResolution: 'studies' },
        },
      },
    ],
  };
}
