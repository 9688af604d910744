import { defineConfig } from 'vite';

export default defineConfig({
    publicDir: false,
    build: {
        outDir: process.env.APP_ASSETS ?? 'public/build',
        emptyOutDir: true,
        rollupOptions: { input: 'resources/js/app.js', output: { entryFileNames: 'app.js' } },
    },
});
