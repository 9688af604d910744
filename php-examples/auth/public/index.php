<?php

declare(strict_types=1);

session_start();
$user = $_SESSION['user'] ?? null;

if ($_SERVER['REQUEST_METHOD'] === 'POST') {
    switch ($_POST['action'] ?? '') {
        case 'login':
            $name = strtolower(trim($_POST['name'] ?? ''));
            if (preg_match('/^[a-z]{1,20}$/D', $name) !== 1) {
                http_response_code(422);
                exit;
            }
            // A new id for the session, so that one that somebody knew before is worth nothing.
            session_regenerate_id(true);
            $_SESSION['user'] = $name;
            break;
        case 'note':
            if ($user === null) {
                http_response_code(401);
                exit;
            }
            $text = trim($_POST['text'] ?? '');
            if ($text === '' || strlen($text) > 500 || preg_match('//u', $text) !== 1) {
                http_response_code(422);
                exit;
            }
            // Every window of this user has it, and nobody else's.
            broadcastToUser($user, ['text' => $text], as: 'note');
            http_response_code(204);
            exit;
        case 'logout':
            session_destroy();
            // The connections end with the session: their cookie is worth nothing any more.
            if ($user !== null) {
                disconnectUser($user, 4009, 'logged out');
            }
            break;
    }
    header('Location: /', true, 303);
    exit;
}
?>
<!doctype html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Notes</title>
<style>
    body { font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto; padding: 0 1rem; }
    form { display: flex; gap: .5rem; margin: .5rem 0; }
    input { flex: 1; font: inherit; }
    #state { color: #666; }
</style>
<h1>Notes</h1>
<?php if ($user === null): ?>
<form method="post"><input name="name" placeholder="Your name, letters only" required pattern="[A-Za-z]{1,20}" autofocus>
<button name="action" value="login">Log in</button></form>
<?php else: ?>
<p>You are <b><?= $user ?></b>. Open a second window: a note is in all of yours at once.</p>
<form method="post" id="note"><input name="text" placeholder="A note to yourself" autocomplete="off" autofocus><button>Send</button></form>
<ul id="notes"></ul>
<form method="post"><button name="action" value="logout">Log out</button></form>
<?php endif ?>
<p id="state">not connected</p>
<script>
    const state = document.querySelector('#state');
    let pause = 250;
    (function connect() {
        // The browser sends the session's cookie by itself.
        const socket = new WebSocket(`${location.protocol.replace('http', 'ws')}//${location.host}/ws`);
        socket.onmessage = ({ data }) => {
            const message = JSON.parse(data);
            if (message.type === 'connected') {
                pause = 250;
                state.textContent = `connected as ${message.user_id}`;
            } else if (message.type === 'message') {
                const item = document.createElement('li');
                item.textContent = message.data.text;
                document.querySelector('#notes').append(item);
            }
        };
        socket.onclose = ({ code, reason }) => {
            state.textContent = `not connected: ${reason || code}`;
            // 40xx: nothing will change until somebody logs in.
            if (code < 4000 || code >= 4100) setTimeout(connect, pause = Math.min(pause * 2, 8000) * (.5 + Math.random() / 2));
        };
    })();
    document.querySelector('#note')?.addEventListener('submit', (event) => {
        event.preventDefault();
        fetch('/', { method: 'POST', body: new URLSearchParams({ action: 'note', text: event.target.text.value }) });
        event.target.reset();
    });
</script>
