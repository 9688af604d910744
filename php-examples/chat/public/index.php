<?php

declare(strict_types=1);

// A web request like any other. It runs in a php-fpm worker and the hub is another process, but broadcast() is the
// same call as everywhere: one write to the hub's socket, and every open page has the line.
if ($_SERVER['REQUEST_METHOD'] === 'POST') {
    $line = ['name' => trim($_POST['name'] ?? '') ?: 'somebody', 'text' => trim($_POST['text'] ?? '')];
    if ($line['text'] === '' || strlen($line['text']) > 1000 || !is_text($line)) {
        http_response_code(422);
        exit;
    }
    // The page that sent it shows it when it comes back, like everybody's.
    broadcast('chat', $line, as: 'line');
    http_response_code(204);
    exit;
}

/** Browsers send UTF-8; others may not, and broadcast() would refuse it. */
function is_text(array $line): bool
{
    return preg_match('//u', implode($line)) === 1;
}
?>
<!doctype html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Chat</title>
<style>
    body { font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto; padding: 0 1rem; }
    ol { list-style: none; padding: 0; min-height: 10rem; }
    form { display: flex; gap: .5rem; }
    [name=text] { flex: 1; }
</style>
<ol id="lines"></ol>
<form>
    <input name="name" placeholder="Name" size="10" autocomplete="nickname">
    <input name="text" placeholder="Say something" autocomplete="off" maxlength="1000" required autofocus>
    <button>Send</button>
</form>
<p id="state">connecting …</p>
<script>
    const form = document.querySelector('form');
    const state = document.querySelector('#state');

    function connect() {
        const socket = new WebSocket(`${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/ws/chat`);
        socket.onopen = () => { state.textContent = 'connected'; };
        socket.onmessage = ({ data }) => {
            const message = JSON.parse(data);
            if (message.type !== 'message') return;
            const line = document.createElement('li');
            line.textContent = `${message.data.name}: ${message.data.text}`;
            document.querySelector('#lines').append(line);
        };
        socket.onclose = () => { state.textContent = 'the hub is away, coming back …'; setTimeout(connect, 1000); };
    }
    connect();

    form.onsubmit = async (event) => {
        event.preventDefault();
        const body = new FormData(form);
        form.text.value = '';
        await fetch('/', { method: 'POST', body });
    };
</script>
