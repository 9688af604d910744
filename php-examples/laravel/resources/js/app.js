import Echo from 'laravel-echo';
import Pusher from 'pusher-js/with-encryption';

const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content;
const [host, port] = (meta('hub') || window.location.host).split(':');

window.Echo = new Echo({
    broadcaster: 'reverb',
    Pusher,
    key: meta('app-key'),
    wsHost: host,
    wsPort: port ?? 80,
    wssPort: port ?? 443,
    forceTLS: window.location.protocol === 'https:',
    enabledTransports: ['ws', 'wss'],
});

const $ = (selector) => document.querySelector(selector);
const line = (list, text) => list.appendChild(Object.assign(document.createElement('li'), { textContent: text }));

async function post(path, body = {}) {
    const response = await fetch(path, {
        method: 'POST',
        headers: {
            'Content-Type': 'application/json',
            Accept: 'application/json',
            'X-CSRF-TOKEN': meta('csrf-token'),
            // Echo adds this by itself to axios; fetch has to be told. toOthers() needs it.
            'X-Socket-ID': window.Echo.socketId() ?? '',
        },
        body: JSON.stringify(body),
    });
    return response.ok ? response.json() : Promise.reject(new Error(`${path}: ${response.status}`));
}

function show(order) {
    let item = $(`#orders [data-id="${order.id}"]`);
    if (!item) {
        item = line($('#orders'), `${order.item} `);
        item.dataset.id = order.id;
        item.appendChild(Object.assign(document.createElement('button'), { textContent: 'Ship' }));
    }
    item.dataset.seen = Number(item.dataset.seen ?? 0) + 1;
    item.className = order.state;
}

$('#new').addEventListener('submit', async (event) => {
    event.preventDefault();
    const field = $('#new input');
    show(await post('/orders', { item: field.value }));
    field.value = '';
});
$('#orders').addEventListener('click', (event) => {
    if (event.target.tagName === 'BUTTON') post(`/orders/${event.target.closest('li').dataset.id}/ship`);
});

window.Echo.channel('orders').listen('OrderPlaced', show).listen('.order.shipped', show);

window.Echo.private(`customers.${meta('user')}`).listen('.order.shipped', (order) => line($('#inbox'), `Shipped: ${order.item}`));
window.Echo.private(`App.Models.User.${meta('user')}`).notification((notification) => line($('#inbox'), notification.text));

const room = window.Echo.join('room');
const members = new Map();
const draw = () => $('#members').replaceChildren(...[...members.values()].sort().map((name) => Object.assign(document.createElement('li'), { textContent: name })));
room.here((present) => {
    members.clear();
    present.forEach(({ id, name }) => members.set(id, name));
    draw();
})
    .joining(({ id, name }) => (members.set(id, name), draw()))
    .leaving(({ id }) => (members.delete(id), draw()))
    .listenForWhisper('typing', ({ name }) => ($('#typing').textContent = `${name} is typing`));
$('#new').addEventListener('input', () => room.whisper('typing', { name: members.get(Number(meta('user'))) }));

window.Echo.connector.pusher.connection.bind('state_change', ({ current }) => {
    $('#state').textContent = current;
    $('#state').className = current;
});
