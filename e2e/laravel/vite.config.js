import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vite';

const here = (path) => fileURLToPath(new URL(path, import.meta.url));

/** The page of the Laravel example, with the clients that are installed here. */
export default defineConfig({
    root: here('../../php-examples/laravel'),
    publicDir: false,
    logLevel: 'warn',
    resolve: { alias: { 'pusher-js': here('node_modules/pusher-js'), 'laravel-echo': here('node_modules/laravel-echo') } },
    build: {
        outDir: process.env.APP_ASSETS,
        emptyOutDir: true,
        rollupOptions: { input: here('../../php-examples/laravel/resources/js/app.js'), output: { entryFileNames: 'app.js' } },
    },
});
