import { configureEcho } from '@laravel/echo-vue';

configureEcho({
    broadcaster: 'reverb',
    key: import.meta.env.VITE_REALTIME_APP_KEY,
    wsHost: import.meta.env.VITE_REALTIME_HOST ?? window.location.hostname,
    wsPort: import.meta.env.VITE_REALTIME_PORT ?? 80,
    wssPort: import.meta.env.VITE_REALTIME_PORT ?? 443,
    forceTLS: (import.meta.env.VITE_REALTIME_SCHEME ?? 'https') === 'https',
    enabledTransports: ['ws', 'wss'],
});
