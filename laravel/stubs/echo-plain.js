import Echo from 'laravel-echo';
import Pusher from 'pusher-js';

window.Pusher = Pusher;

window.Echo = new Echo({
    broadcaster: 'reverb',
    key: import.meta.env.VITE_REALTIME_APP_KEY,
    wsHost: import.meta.env.VITE_REALTIME_HOST ?? window.location.hostname,
    wsPort: import.meta.env.VITE_REALTIME_PORT ?? 80,
    wssPort: import.meta.env.VITE_REALTIME_PORT ?? 443,
    forceTLS: (import.meta.env.VITE_REALTIME_SCHEME ?? 'https') === 'https',
    enabledTransports: ['ws', 'wss'],
});
