// laravel-echo and pusher-js in Chromium against a Laravel application: what works, and what is refused.

import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import puppeteer from 'puppeteer-core';
import { freePort } from '../port.mjs';
import { Stack, deadline, eventually, root, secret } from './stack.js';

const pictures = join(process.env.CARGO_TARGET_DIR ?? join(root, 'target'), 'e2e');
mkdirSync(pictures, { recursive: true });

let passed = 0;
let failed = 0;
async function test(name, body) {
    try {
        await body();
        passed++;
        console.log(`ok      ${name}`);
    } catch (problem) {
        failed++;
        console.log(`FAILED  ${name}\n    ${(problem.stack ?? String(problem)).replaceAll('\n', '\n    ')}`);
    }
}

const stack = new Stack();
let browser;

/** Somebody's browser: cookies, page and connection of their own. */
class Person {
    static async signedIn(id) {
        const person = new Person();
        person.context = await browser.createBrowserContext();
        person.page = await person.context.newPage();
        person.page.setDefaultTimeout(deadline);
        person.frames = [];
        person.problems = [];
        person.page.on('pageerror', (problem) => person.problems.push(String(problem)));
        const session = await person.page.createCDPSession();
        await session.send('Network.enable');
        session.on('Network.webSocketFrameReceived', ({ response }) => person.frames.push(response.payloadData));
        await person.page.goto(`${stack.url}/login/${id}`);
        await person.connected();
        return person;
    }

    /** Connected, and every channel of the page joined. */
    async connected() {
        await this.page.waitForFunction(() => {
            const pusher = window.Echo?.connector.pusher;
            return pusher?.connection.state === 'connected' && pusher.allChannels().every((channel) => channel.subscribed);
        });
    }

    run(body, ...values) {
        return this.page.evaluate(body, ...values);
    }

    /** Waits until an element has the text. */
    sees(selector, text) {
        return this.page.waitForFunction((where, what) => document.querySelector(where)?.textContent.includes(what), {}, selector, text);
    }

    text(selector) {
        return this.run((where) => document.querySelector(where).textContent, selector);
    }

    async order(item) {
        await this.page.type('#new input', item);
        await this.page.click('#new button');
        await this.sees('#orders', item);
    }

    ship(item) {
        return this.run((what) => [...document.querySelectorAll('#orders li')].find((line) => line.textContent.includes(what)).querySelector('button').click(), item);
    }

    /** How often the page was told of the order, its own answer included. */
    told(item) {
        return this.run((what) => Number([...document.querySelectorAll('#orders li')].find((line) => line.textContent.includes(what)).dataset.seen), item);
    }

    close() {
        return this.context.close();
    }
}

try {
    await stack.start();
    const chromium = process.env.CHROMIUM || ['chromium', 'chromium-browser', 'google-chrome'].map((name) => {
        try {
            return execFileSync('sh', ['-c', `command -v ${name}`]).toString().trim();
        } catch {
            return '';
        }
    }).find(Boolean);
    // The pages are our own, so the sandbox, which needs rights that containers do not give, is left out.
    browser = await puppeteer.launch({ executablePath: chromium, args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'], timeout: deadline, protocolTimeout: 4 * deadline });

    const anna = await Person.signedIn(1);
    const ben = await Person.signedIn(2);
    /** Ends the hub, and waits until both pages know. */
    const stopHub = async () => {
        await stack.stopOne('hub');
        await Promise.all([anna, ben].map((person) => person.page.waitForFunction(() => window.Echo.connector.pusher.connection.state !== 'connected')));
    };

    await test('public: an order appears on the other page; toOthers spares the one that placed it', async () => {
        await anna.order('teapot');
        await ben.sees('#orders', 'teapot');
        // What is shipped goes to both, behind anything that was on the way to Anna.
        await ben.ship('teapot');
        await anna.page.waitForSelector('#orders .shipped');
        await ben.page.waitForSelector('#orders .shipped');
        assert.deepEqual([await anna.told('teapot'), await ben.told('teapot')], [2, 2], 'her own answer and the shipping; his two events');
    });

    await test('what is rolled back is not announced', async () => {
        await assert.rejects(anna.run(async () => {
            const answer = await fetch('/orders', { method: 'POST', headers: { 'Content-Type': 'application/json', Accept: 'application/json', 'X-CSRF-TOKEN': document.querySelector('meta[name="csrf-token"]').content }, body: JSON.stringify({ item: 'nothing' }) });
            if (!answer.ok) throw new Error(String(answer.status));
        }), /422/);
        await anna.order('after nothing');
        await ben.sees('#orders', 'after nothing');
        assert.equal(await ben.run(() => [...document.querySelectorAll('#orders li')].some((line) => line.textContent.startsWith('nothing'))), false);
    });

    await test('private: only the customer hears of her parcel; her notification arrives', async () => {
        await anna.sees('#inbox', 'Shipped: teapot');
        await anna.sees('#inbox', 'Your teapot is on its way');
        assert.equal(await ben.text('#inbox'), '');
    });

    await test('private: another customer\'s channel is refused, and the page goes on', async () => {
        const status = await ben.run(() => new Promise((done) => window.Echo.private('customers.1').error((problem) => done(problem.status ?? problem))));
        await ben.run(() => window.Echo.leave('customers.1'));
        assert.equal(status, 403);
        await anna.order('spoon');
        await ben.sees('#orders', 'spoon');
    });

    await test('encrypted: the page reads what the hub cannot', async () => {
        await ben.run(() => new Promise((done, fail) => {
            window.sealed = [];
            window.Echo.encryptedPrivate('ledger').listen('.order.shipped', (order) => window.sealed.push(order)).subscribed(done).error(fail);
        }));
        await anna.ship('spoon');
        await ben.page.waitForFunction(() => window.sealed.length === 1);
        assert.equal((await ben.run(() => window.sealed[0])).item, 'spoon');
        const sealed = () => ben.frames.filter((frame) => frame.includes('private-encrypted-ledger') && frame.includes('order.shipped'));
        await eventually('the frame is reported', () => sealed().length > 0);
        const frames = sealed();
        assert.equal(frames.length, 1);
        assert.deepEqual(Object.keys(JSON.parse(JSON.parse(frames[0]).data)).sort(), ['ciphertext', 'nonce']);
    });

    await test('presence: two browsers see a third come and go', async () => {
        await anna.sees('#members', 'Ben');
        await ben.sees('#members', 'Anna');
        const carla = await Person.signedIn(3);
        await carla.sees('#members', 'Carla');
        await anna.sees('#members', 'Carla');
        await ben.sees('#members', 'Carla');
        assert.deepEqual(await carla.run(() => [...document.querySelectorAll('#members li')].map((line) => line.textContent)), ['Anna', 'Ben', 'Carla']);
        await anna.page.screenshot({ path: join(pictures, 'dashboard.png') });
        await carla.close();
        await anna.page.waitForFunction(() => !document.querySelector('#members').textContent.includes('Carla'));
    });

    await test('presence: a second tab of the same user is no second member, and its end is no leaving', async () => {
        const second = await anna.context.newPage();
        second.setDefaultTimeout(deadline);
        await second.goto(stack.url);
        await second.waitForFunction(() => document.querySelectorAll('#members li').length === 2);
        await second.close();
        await eventually('the hub has seen its end', () => stack.connections() === 2);
        await anna.order('saucer');
        await ben.sees('#orders', 'saucer');
        assert.equal(await ben.text('#members'), 'AnnaBen');
    });

    await test('whisper: typing is seen by the others alone', async () => {
        await ben.page.type('#new input', 'x');
        await ben.page.keyboard.press('Backspace');
        await anna.sees('#typing', 'Ben is typing');
        assert.doesNotMatch(await ben.text('#typing'), /Ben/);
    });

    await test('PHP knows who is there though nobody signed in, and closes their connections', async () => {
        await eventually('the hub lists Anna on her channel', () => JSON.parse(stack.php('echo json_encode(getChannelUsers("private-customers.1"));'))[0]?.id === '1');
        const before = await anna.run(() => window.Echo.socketId());
        assert.equal(stack.php('echo disconnectUser(1, 4200, "sign in again");'), '1');
        await anna.page.waitForFunction((old) => window.Echo.socketId() && window.Echo.socketId() !== old, {}, before);
        await anna.connected();
    });

    await test('reconnect: after a restart of the hub both pages are back on all their channels', async () => {
        await stopHub();
        await anna.page.screenshot({ path: join(pictures, 'without-a-hub.png') });
        await stack.startHub();
        await Promise.all([anna.connected(), ben.connected()]);
        await anna.order('kettle');
        await ben.sees('#orders', 'kettle');
        await ben.ship('kettle');
        await anna.sees('#inbox', 'Shipped: kettle');
        await anna.sees('#members', 'Ben');
        await ben.sees('#members', 'Anna');
    });

    await test('without a hub the site works: orders are stored, and nobody waits', async () => {
        await stopHub();
        await anna.order('lamp');
        await stack.startHub();
        await Promise.all([anna.connected(), ben.connected()]);
    });

    // Faults.

    await test('wrong secret: private channels are refused, public ones work, and the right secret brings all back', async () => {
        await stopHub();
        await stack.startHub('another secret');
        await anna.page.waitForFunction(() => {
            const { connection } = window.Echo.connector.pusher;
            const channel = (name) => window.Echo.connector.channels[name].subscription;
            return connection.state === 'connected' && channel('orders').subscribed && !channel('private-customers.1').subscribed;
        });
        const refusal = await eventually('the hub says no', () => anna.frames.filter((frame) => frame.includes('subscription_error') && frame.includes('private-customers.1')).at(-1));
        assert.equal(JSON.parse(refusal).event, 'pusher:subscription_error');
        await stopHub();
        await stack.startHub(secret);
        await Promise.all([anna.connected(), ben.connected()]);
        await anna.order('bowl');
        await ben.sees('#orders', 'bowl');
        await ben.ship('bowl');
        await anna.sees('#inbox', 'Shipped: bowl');
    });

    /** Joins a channel with an answer of the application that was changed on the way; what became of it. */
    const joinWith = (person, channel, change) => person.run(async (name, source) => {
        const alter = new Function('answer', 'socket', `return (${source})(answer, socket)`);
        const pusher = window.Echo.connector.pusher;
        const ask = (socket) => fetch('/broadcasting/auth', {
            method: 'POST',
            headers: { 'Content-Type': 'application/json', Accept: 'application/json', 'X-CSRF-TOKEN': document.querySelector('meta[name="csrf-token"]').content },
            body: JSON.stringify({ channel_name: name, socket_id: socket }),
        }).then((answer) => answer.json());
        const other = new pusher.constructor(pusher.key, {
            ...pusher.config, cluster: '', wsHost: location.hostname, wsPort: location.port, forceTLS: false, enabledTransports: ['ws'],
            channelAuthorization: { customHandler: ({ socketId }, done) => alter({ ask }, socketId).then((answer) => done(null, answer), (problem) => done(problem, null)) },
        });
        const outcome = await new Promise((done) => {
            const subscription = other.subscribe(name);
            subscription.bind('pusher:subscription_succeeded', () => done('joined'));
            subscription.bind('pusher:subscription_error', (problem) => done(`refused ${problem.status ?? ''}`.trim()));
        });
        // The refusal costs the channel, not the connection.
        const still = await new Promise((done) => other.subscribe('orders').bind('pusher:subscription_succeeded', () => done(other.connection.state)));
        other.disconnect();
        return [outcome, still];
    }, channel, change.toString());

    await test('an answer that nobody changed joins', async () => {
        assert.deepEqual(await joinWith(ben, 'presence-room', async (app, socket) => app.ask(socket)), ['joined', 'connected']);
    });

    await test('tampered channel_data: refused, and the connection stays', async () => {
        const tampered = async (app, socket) => {
            const answer = await app.ask(socket);
            return { ...answer, channel_data: answer.channel_data.replace('"user_id":"2"', '"user_id":"1"') };
        };
        const [outcome, still] = await joinWith(ben, 'presence-room', tampered);
        assert.match(outcome, /^refused/);
        assert.equal(still, 'connected');
    });

    await test('replayed socket id: a signature for another connection is refused', async () => {
        const [outcome, still] = await joinWith(ben, 'private-customers.2', async (app) => app.ask(window.Echo.socketId()));
        assert.match(outcome, /^refused/);
        assert.equal(still, 'connected');
    });

    await test('oversize client event: an error for its sender, nothing for the others, and the next one arrives', async () => {
        const error = await ben.run(() => new Promise((done) => {
            window.Echo.connector.pusher.connection.bind('error', (problem) => done(JSON.stringify(problem.data ?? problem)));
            window.Echo.join('room').whisper('typing', { name: 'x'.repeat(20_000) });
        }));
        assert.match(error, /"code":\d+|"message"/);
        await ben.run(() => window.Echo.join('room').whisper('typing', { name: 'Benjamin' }));
        await anna.sees('#typing', 'Benjamin is typing');
        assert.equal(await ben.run(() => window.Echo.connector.pusher.connection.state), 'connected');
    });

    await test('the example\'s own command starts page and hub, and ends them', async () => {
        const [port, hubPort] = [await freePort(), await freePort()];
        stack.spawn('start', join(root, 'php-examples/laravel/start'), [], stack.environment({
            PORT: String(port), HUB_PORT: String(hubPort), APP_ASSETS: join(stack.directory, 'build'), APP_STORAGE: join(stack.directory, 'start'),
            REALTIME_SOCKET: join(stack.directory, 'start.sock'),
        }));
        const answers = (url) => fetch(url).then((answer) => (answer.ok ? answer.text() : false), () => false);
        assert.match(await eventually('the page is served', () => answers(`http://127.0.0.1:${port}/`)), /Who are you/);
        await eventually('the hub answers', () => answers(`http://127.0.0.1:${hubPort}/health`));
        await stack.stopOne('start');
        await eventually('both have ended', async () => !(await answers(`http://127.0.0.1:${port}/`)) && !(await answers(`http://127.0.0.1:${hubPort}/health`)));
    });

    await test('no page had an error of its own', async () => {
        assert.deepEqual([...anna.problems, ...ben.problems], []);
    });
} catch (problem) {
    failed++;
    console.log(`FAILED  ${problem.stack}\n${stack.log('hub')}\n${stack.log('fpm')}\n${stack.log('nginx')}`);
} finally {
    await browser?.close();
    await stack.stop();
}
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 && passed > 0 ? 0 : 1);
