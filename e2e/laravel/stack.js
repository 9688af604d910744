// What the page runs on: hub, PHP-FPM and nginx, each on a free port or socket in a directory of its own.

import { spawn, execFileSync } from 'node:child_process';
import { appendFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { freePort } from '../port.mjs';

export const root = resolve(fileURLToPath(import.meta.url), '../../..');
export const app = join(root, 'php-examples/laravel');
export const key = '278d425bdf160c739803';
export const secret = '7ad3773142a6692b25b8';

/** How long anything may take before a test gives up on it. Nothing waits this long when all is well. */
export const deadline = 60_000;

export async function eventually(what, look) {
    for (const end = Date.now() + deadline; ; await new Promise((done) => setTimeout(done, 20))) {
        const found = await look();
        if (found) return found;
        if (Date.now() > end) throw new Error(`gave up waiting until ${what}`);
    }
}

export class Stack {
    directory = mkdtempSync(join(tmpdir(), 'realtime-e2e-'));
    children = new Map();

    async start() {
        [this.port, this.hubPort] = [await freePort(), await freePort()];
        this.url = `http://127.0.0.1:${this.port}`;
        execFileSync('node_modules/.bin/vite', ['build'], { cwd: join(root, 'e2e/laravel'), env: { ...process.env, APP_ASSETS: join(this.directory, 'build') }, stdio: ['ignore', 'ignore', 'inherit'] });
        await this.startHub();
        this.startFpm();
        this.startNginx();
        await eventually('nginx and PHP-FPM answer', async () => {
            for (const [name, child] of this.children) {
                if (child.exitCode !== null) throw new Error(`${name} ended: ${this.log(name)}`);
            }
            return fetch(`${this.url}/`).then((answer) => answer.ok || (answer.status === 500 && Promise.reject(new Error(`HTTP ${answer.status}: ${this.log('fpm')}`))), (problem) => (problem.message.startsWith('HTTP') ? Promise.reject(problem) : false));
        });
    }

    environment(more = {}) {
        const own = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(REALTIME|REVERB|PUSHER|BROADCAST|APP)_/.test(name)));
        return { ...own, REALTIME_CONFIG: join(this.directory, 'realtime.toml'), REALTIME_SOCKET: join(this.directory, 'hub.sock'), ...more };
    }

    /** Another secret than the application's makes every signature wrong. */
    async startHub(secretOfHub = secret) {
        const config = join(this.directory, 'realtime.toml');
        writeFileSync(config, '');
        this.spawn('hub', join(root, 'build/realtime'), ['serve'], this.environment({
            REALTIME_LISTEN: `127.0.0.1:${this.hubPort}`,
            REALTIME_ALLOWED_ORIGINS: this.url,
            REALTIME_APPS: JSON.stringify([{ name: 'default', id: '3', key, secret: secretOfHub }]),
        }));
        await eventually('the hub answers', () => fetch(`http://127.0.0.1:${this.hubPort}/health`).then((answer) => answer.ok, () => {
            if (this.children.get('hub').exitCode !== null) throw new Error(`the hub ended: ${this.log('hub')}`);
        }));
    }

    startFpm() {
        const root_ = process.getuid() === 0;
        const file = join(this.directory, 'fpm.conf');
        writeFileSync(file, [
            '[global]', `error_log = ${this.directory}/fpm.log`, 'daemonize = no', '[www]', root_ ? 'user = root\ngroup = root' : '',
            `listen = ${this.directory}/fpm.sock`, 'pm = static', 'pm.max_children = 4', 'clear_env = no', 'catch_workers_output = yes', '',
        ].join('\n'));
        this.spawn('fpm', this.fpmProgram(), [...this.phpOptions(), ...(root_ ? ['-R'] : []), '-F', '-y', file], this.applicationEnvironment());
    }

    applicationEnvironment() {
        return this.environment({
            APP_URL: this.url, APP_STORAGE: join(this.directory, 'storage'), HUB_ADDRESS: '', BROADCAST_CONNECTION: 'realtime',
            REALTIME_APP_ID: '3', REALTIME_APP_KEY: key, REALTIME_APP_SECRET: secret,
            REALTIME_ENCRYPTION_MASTER_KEY: Buffer.alloc(32, 7).toString('base64'),
        });
    }

    startNginx() {
        const file = join(this.directory, 'nginx.conf');
        const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((what) => `${what}_temp_path ${this.directory}/${what};`).join(' ');
        writeFileSync(file, `
            ${process.getuid() === 0 ? 'user root;' : ''} daemon off; worker_processes 1; pid ${this.directory}/nginx.pid; error_log ${this.directory}/nginx.log;
            events {}
            http {
                include /etc/nginx/mime.types; access_log off; ${temporary}
                server {
                    listen 127.0.0.1:${this.port};
                    location /app/ {
                        proxy_pass http://127.0.0.1:${this.hubPort};
                        proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;
                        proxy_set_header Host $http_host;
                    }
                    location /build/ { alias ${this.directory}/build/; }
                    location / {
                        include /etc/nginx/fastcgi_params;
                        fastcgi_param SCRIPT_FILENAME ${app}/public/index.php;
                        fastcgi_param SCRIPT_NAME /index.php;
                        # Debian's file leaves the port out, and redirects need it.
                        fastcgi_param HTTP_HOST $host:${this.port};
                        fastcgi_pass unix:${this.directory}/fpm.sock;
                    }
                }
            }`);
        this.spawn('nginx', '/usr/sbin/nginx', ['-c', file, '-e', join(this.directory, 'nginx.log')]);
    }

    phpOptions() {
        return ['-d', `extension=${join(root, 'build/realtime.so')}`, '-d', 'opcache.enable=1', '-d', 'opcache.enable_cli=1', '-d', 'opcache.file_update_protection=0'];
    }

    fpmProgram() {
        const version = execFileSync('php', ['-r', 'echo PHP_MAJOR_VERSION, ".", PHP_MINOR_VERSION;']).toString();
        return [`/usr/sbin/php-fpm${version}`, '/usr/sbin/php-fpm'].find((path) => existsSync(path)) ?? 'php-fpm';
    }

    /** PHP code as any other process of the host runs it; what it printed. */
    php(code) {
        return execFileSync('php', [...this.phpOptions(), '-r', code], { env: this.applicationEnvironment() }).toString();
    }

    spawn(name, program, commandLine, environment = process.env) {
        const child = spawn(program, commandLine, { env: environment, stdio: ['ignore', 'pipe', 'pipe'] });
        for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => appendFileSync(join(this.directory, `${name}.out`), text));
        this.children.set(name, child);
    }

    /** How many clients the hub has. */
    connections() {
        return JSON.parse(execFileSync(join(root, 'build/realtime'), ['status', '--json'], { env: this.environment() })).connections;
    }

    log(name) {
        return [`${name}.out`, `${name}.log`].map((file) => join(this.directory, file)).filter(existsSync).map((file) => readFileSync(file, 'utf8')).join('').slice(-4000);
    }

    async stopOne(name) {
        const child = this.children.get(name);
        this.children.delete(name);
        if (child && child.exitCode === null) {
            const ended = new Promise((done) => child.once('exit', done));
            child.kill('SIGTERM');
            await ended;
        }
    }

    async stop() {
        for (const name of ['start', 'nginx', 'fpm', 'hub']) await this.stopOne(name);
        rmSync(this.directory, { recursive: true, force: true, maxRetries: 5 });
    }
}
