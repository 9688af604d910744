<?php

declare(strict_types=1);

// The hub runs in FrankenPHP's own process, since its start: broadcast() is a function call into its threads.
if ($_SERVER['REQUEST_METHOD'] === 'POST') {
    $text = $_POST['text'] ?? '';
    if ($text === '' || strlen($text) > 1000 || preg_match('//u', $text) !== 1) {
        http_response_code(422);
        exit;
    }
    broadcast('chat', ['text' => $text], as: 'line');
    http_response_code(204);
    exit;
}
?>
<!doctype html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>FrankenPHP</title>
<form><input name="text" autocomplete="off" maxlength="1000" required autofocus> <button>Send</button></form>
<ol id="lines"></ol>
<script>
    const form = document.querySelector('form');

    function connect() {
        const socket = new WebSocket(`${location.protocol === 'https:' ? 'wss' : 'ws'}://${location.host}/ws/chat`);
        socket.onmessage = ({ data }) => {
            const message = JSON.parse(data);
            if (message.type !== 'message') return;
            const line = document.createElement('li');
            line.textContent = message.data.text;
            document.querySelector('#lines').prepend(line);
        };
        socket.onclose = () => setTimeout(connect, 1000);
    }
    connect();

    form.onsubmit = async (event) => {
        event.preventDefault();
        const body = new FormData(form);
        form.reset();
        await fetch('/', { method: 'POST', body });
    };
</script>
