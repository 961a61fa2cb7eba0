import { defineConfig } from 'vitest/config';

// The bundles lie in the Python package, which serves them. They are not minified, so that a change of them can be
// read; they must be the same wherever they are built.
export default defineConfig({
  define: { 'process.env.NODE_ENV': '"production"' },
  build: {
    target: 'es2022',
    minify: false,
    outDir: '../lib/medclipsam/server/viewer/ohif',
    emptyOutDir: true,
    lib: {
      entry: { 'app-config': 'src/app-config.ts', extension: 'src/extension.ts', mode: 'src/mode.ts' },
      formats: ['es'],
      fileName: (_format, name) => `${name}.js`,
    },
  },
  test: { environment: 'happy-dom', include: ['test/**/*.test.ts'] },
});
