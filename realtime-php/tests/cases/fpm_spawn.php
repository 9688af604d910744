<?php

/** A hub that php-fpm's workers start themselves: `realtime.autospawn`, with real php-fpm and nginx. */

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';
require __DIR__ . '/../support/fpm.php';
require __DIR__ . '/../support/nginx.php';
require __DIR__ . '/../support/site.php';

use Tests\{Client, Fpm, Process, Site};

use function Tests\{check, contains, eventually, lives, note, php, processes, same, socket_path, test};

// Each site has a socket of its own, in its php.ini.
putenv('REALTIME_SOCKET');
check(is_executable(Site::program()), 'there is no ' . Site::program() . '; build it with `make build`');

/** A field of /proc/PID/status. */
$field = fn (int $pid, string $name): string => preg_match("/^$name:\s*(\S+)/m", (string) @file_get_contents("/proc/$pid/status"), $match) ? $match[1] : '';
/** CPU seconds that a process has used. */
$cpu = function (int $pid): float {
    $fields = explode(' ', substr((string) strrchr((string) file_get_contents("/proc/$pid/stat"), ')'), 2));
    return ($fields[11] + $fields[12]) / 100;
};
$ms = fn (float $since): string => round((microtime(true) - $since) * 1000, 1) . ' ms';

test('autospawn: the first call of a worker starts the hub, as the pool\'s user, in a session of its own', function () use ($field) {
    $site = new Site();
    $site->nginx->script('timed.php', "\$start = hrtime(true); broadcast('page', 'x'); \$end = hrtime(true); Realtime\\stats(); echo getmypid(), ' ', (\$end - \$start) / 1e6;");
    same([], $site->hubs());
    [$status, $answer] = $site->nginx->get('/timed.php');
    same(200, $status);
    [$worker, $took] = explode(' ', $answer);
    $hub = $site->hub();
    same([$hub['pid']], $site->hubs());
    same(1, $hub['published']);
    same($field((int) $worker, 'Uid'), $field($hub['pid'], 'Uid'));
    check($field($hub['pid'], 'PPid') !== $worker && $field($hub['pid'], 'NSsid') === (string) posix_getsid($hub['pid']), 'it is nobody\'s child');
    check(posix_getsid($hub['pid']) !== posix_getsid((int) $worker), 'the session is its own');
    [, $next] = explode(' ', $site->nginx->get('/timed.php')[1]);
    note(sprintf('the call that started the hub took %.1f ms, one after it %.3f ms', $took, $next));
    $client = Client::subscribed($hub['listen'], 'page');
    $site->send('hello');
    same('hello', $client->next()['data']);
    $site->fpm->logged('realtime: started ' . Site::program() . ", bus $site->socket");
});

test('autospawn: where php-fpm\'s master is root the hub is the pool\'s user all the same', function () use ($field) {
    // Without root there is only one user to be.
    $nobody = posix_geteuid() === 0 ? 65534 : posix_geteuid();
    $place = getenv('TEST_DIRECTORY') . '/nobody';
    mkdir($place);
    chmod(getenv('TEST_DIRECTORY'), 0711);
    copy(Site::program(), "$place/realtime");
    chmod("$place/realtime", 0755);
    if (posix_geteuid() === 0) {
        chown($place, $nobody);
    }
    $user = posix_getpwuid($nobody)['name'];
    $site = new Site(
        ['realtime.socket' => "$place/run/hub.sock", 'realtime.binary' => "$place/realtime", 'realtime.log' => "$place/hub.log"],
        pool: posix_geteuid() === 0 ? "user = $user\ngroup = " . posix_getgrgid(posix_getpwuid($nobody)['gid'])['name'] . "\nlisten.owner = root" : '',
    );
    $worker = $site->send('x');
    $hub = $site->hub()['pid'];
    same([(string) $nobody, (string) $nobody], [$field($worker, 'Uid'), $field($hub, 'Uid')]);
    same([$nobody, 0750], [fileowner("$place/run"), fileperms("$place/run") & 0777]);
    same([$nobody, 0660], [fileowner("$place/run/hub.sock"), fileperms("$place/run/hub.sock") & 0777]);
});

test('autospawn: what a hub has of its worker is the bus, and nothing of php-fpm or of the script', function () {
    $site = new Site(children: 1);
    $site->nginx->script('files.php', "\$file = tmpfile(); \$server = stream_socket_server('tcp://127.0.0.1:0'); broadcast('page', 'x'); echo stream_get_meta_data(\$file)['uri'];");
    [, $file] = $site->nginx->get('/files.php');
    $open = [];
    foreach (glob("/proc/{$site->hub()['pid']}/fd/*") as $fd) {
        $open[(int) basename($fd)] = (string) readlink($fd);
    }
    same(['/dev/null', '/dev/null', '/dev/null', "$site->socket.lock"], [$open[0], $open[1], $open[2], $open[4]]);
    check(!in_array($file, $open, true), 'the script\'s file is not there');
    $inode = fn (string $path) => preg_match('~(\d+) ' . preg_quote($path, '~') . '$~m', (string) file_get_contents('/proc/net/unix'), $match) ? "socket:[$match[1]]" : 'none';
    check(!in_array($inode($site->fpm->socket()), $open, true), 'php-fpm\'s listener is not there');
});

test('autospawn: of twenty workers that race one starts a hub, and it has what all have sent', function () use ($ms) {
    $site = new Site(children: 20);
    $site->nginx->script('race.php', <<<'PHP'
        touch(__DIR__ . '/ready-' . getmypid());
        while (!file_exists(__DIR__ . '/go')) {
            usleep(100);
            clearstatcache();
        }
        try {
            echo Realtime\publish('page', 'x')->offset;
        } catch (Realtime\Exception\RealtimeException $e) {
            echo $e->getMessage();
        }
        PHP);
    $requests = array_map(fn () => $site->nginx->begin('/race.php'), range(1, 20));
    eventually(fn () => count(glob("{$site->nginx->root}/ready-*")) === 20, 'all workers are ready');
    same([], $site->hubs());
    $start = microtime(true);
    touch("{$site->nginx->root}/go");
    $offsets = array_map(fn ($request) => $site->nginx->finish($request)[1], $requests);
    $took = $ms($start);
    sort($offsets, SORT_NUMERIC);
    same(array_map(strval(...), range(1, 20)), $offsets);
    same([$site->hub()['pid']], $site->hubs());
    same(1, eventually(fn () => substr_count($site->fpm->log(), 'realtime: started '), 'the start is logged'));
    note("20 workers, 1 hub, 20 publications in $took");
});

test('autospawn: workers that are recycled (pm.max_requests) leave the hub and its clients alone', function () {
    $site = new Site(pool: 'pm.max_requests = 3');
    $workers = [$site->send('first') => true];
    $hub = $site->hub();
    $client = Client::subscribed($hub['listen'], 'page');
    for ($i = 0; $i < 40; $i++) {
        $workers[$site->send("$i")] = true;
        same("$i", $client->next()['data']);
    }
    check(count($workers) > 10, 'only ' . count($workers) . ' workers took part');
    same([$hub['pid']], $site->hubs());
    note(count($workers) . ' workers, 1 hub, 1 WebSocket that stayed open');
});

test('autospawn: a reload (USR2) keeps the hub\'s process and its WebSockets', function () use ($ms) {
    $site = new Site();
    $worker = $site->send('before');
    $hub = $site->hub();
    $client = Client::subscribed($hub['listen'], 'page');
    $master = $site->fpm->pid();
    for ($i = 0; $i < 3; $i++) {
        $start = microtime(true);
        $site->fpm->signal(SIGUSR2);
        eventually(fn () => !lives($worker), 'the old worker has gone');
        $worker = eventually(fn () => ($answer = $site->nginx->get("/send.php?text=after+$i"))[0] === 200 ? (int) $answer[1] : null, 'the new workers answer');
        same("after $i", $client->next()['data']);
        note("reload $i: a new worker's broadcast arrived after {$ms($start)}; hub {$hub['pid']}, master " . $site->fpm->pid());
    }
    same([$master, [$hub['pid']]], [$site->fpm->pid(), $site->hubs()]);
});

test('autospawn: over the reload of a daemon the master\'s number changes, and the hub follows the new one', function () use ($ms) {
    $log = getenv('TEST_DIRECTORY') . '/daemon.log';
    $site = new Site(['realtime.linger_ms' => '60000', 'realtime.log' => $log], daemon: true);
    $worker = $site->send('before');
    $hub = $site->hub();
    $client = Client::subscribed($hub['listen'], 'page');
    $master = $site->fpm->pid();
    $site->fpm->signal(SIGUSR2);
    eventually(fn () => !lives($master), 'the old master has gone');
    eventually(fn () => ($answer = $site->nginx->get('/send.php?text=after'))[0] === 200 ? (int) $answer[1] : null, 'the new workers answer');
    same('after', $client->next()['data']);
    same([$hub['pid']], $site->hubs());
    $new = $site->fpm->pid();
    check($new !== $master, 'the master is another process');
    eventually(fn () => str_contains((string) file_get_contents($log), "following pid=$new"), 'the hub follows the new master');
    check(!str_contains((string) file_get_contents($log), 'leaving'), 'it has not been about to leave');
    // The hub lives for the new master, not for its client: it leaves with the one, without the other's help.
    $client->drop();
    eventually(fn () => $site->hub()['connections'] === 0, 'the client has gone');
    $site->send('still');
    same([$hub['pid']], $site->hubs());
    $start = microtime(true);
    $site->fpm->stop(SIGTERM);
    $site->left();
    note("master $master, after the reload $new, hub {$hub['pid']} throughout; it left {$ms($start)} after the TERM of the new one");
});

test('autospawn: when php-fpm has gone the hub stays for its clients as long as it lingers, and closes them in good order', function () use ($ms) {
    $site = new Site(['realtime.linger_ms' => '300']);
    $site->send('before');
    $hub = $site->hub();
    $client = Client::subscribed($hub['listen'], 'page');
    $start = microtime(true);
    $site->fpm->stop(SIGTERM);
    same(1001, $client->closeCode());
    note("lingering 300 ms: close 1001 came {$ms($start)} after php-fpm's TERM");
    $site->left();
});

foreach (['QUIT' => SIGQUIT, 'TERM' => SIGTERM, 'KILL' => SIGKILL] as $name => $signal) {
    foreach (['in the foreground' => false, 'as a daemon' => true] as $how => $daemon) {
        if ($name === 'KILL' && $daemon) {
            continue;
        }
        test("autospawn: after a $name of php-fpm ($how) no process is left behind", function () use ($name, $signal, $daemon, $ms) {
            $site = new Site(daemon: $daemon);
            $site->send('x');
            same([$site->hub()['pid']], $site->hubs());
            $start = microtime(true);
            $site->fpm->stop($signal);
            $fpm = $ms($start);
            $site->left();
            note("$name: php-fpm had gone after $fpm, the hub after {$ms($start)}");
        });
    }
}

test('autospawn: a hub that was killed is replaced within the next call, and clients come back to it', function () use ($ms, $field) {
    $port = Tests\free_port();
    $site = new Site(['realtime.listen' => "127.0.0.1:$port"], children: 2);
    $hub = null;
    for ($i = 0; $i < 4; $i++) {
        $start = microtime(true);
        same('0', $site->publish('x'));
        $took = $ms($start);
        $next = $site->hub()['pid'];
        check($next !== $hub, 'it is another hub');
        $i > 0 && note("the call after the kill took $took, new hub included");
        $hub = $next;
        $client = Client::subscribed("127.0.0.1:$port", 'page');
        $site->send("round $i");
        same("round $i", $client->next()['data']);
        posix_kill($hub, SIGKILL);
        // Its connections are closed before its last thread is a zombie, or gone.
        eventually(fn () => in_array($field($hub, 'State'), ['Z', ''], true) && count(glob("/proc/$hub/task/*")) <= 1, 'it is dead');
    }
});

test('autospawn: a hub that is told to stop leaves in good order, and the next call starts another', function () {
    $site = new Site();
    $site->send('x');
    $hub = $site->hub();
    $client = Client::subscribed($hub['listen'], 'page');
    posix_kill($hub['pid'], SIGTERM);
    same(1001, $client->closeCode());
    $client->drop();
    // While it drains, and after it.
    same('0', $site->publish('x'));
    check($site->hub()['pid'] !== $hub['pid'], 'another hub');
    same([$site->hub()['pid']], $site->hubs());
});

test('autospawn: why a hub cannot start is said in the call, and not tried again by every request', function () {
    $address = '127.0.0.1:' . Tests\free_port();
    $site = new Site(['realtime.listen' => $address]);
    $taken = stream_socket_server("tcp://$address");
    $answer = $site->publish('x');
    contains('Realtime\Exception\Unavailable', $answer);
    contains(Site::program() . ' did not start: ', $answer);
    contains($address, $answer);
    check(!file_exists($site->socket), 'no socket is left');
    // The first that comes within the pause; on a slow machine that may be a later one.
    eventually(fn () => str_contains($site->publish('x'), '(next attempt in '), 'a call is refused at once');
    // Requests go on, and the log has the reason.
    $site->send('x');
    $site->fpm->logged('broadcast() failed');
    $site->fpm->logged($address);
    fclose($taken);
    eventually(fn () => $site->publish('x') === '0', 'a later call starts it');
});

test('autospawn: while a hub is about to fail nobody can hand it anything', function () {
    // Fails as a hub does whose port is taken, once it is told to.
    $program = getenv('TEST_DIRECTORY') . '/fails';
    file_put_contents($program, "#!/bin/sh\ntouch $program.started\nwhile [ ! -e $program.go ]; do sleep 0.01; done\necho 'the port is taken' >&2\n");
    chmod($program, 0755);
    $site = new Site(['realtime.binary' => $program, 'realtime.on_error' => 'throw']);
    $site->nginx->script('broadcast.php', "try { broadcast('page', 'x'); echo 'accepted'; } catch (Throwable \$e) { echo \$e->getMessage(); }");
    $first = $site->nginx->begin('/broadcast.php');
    eventually(fn () => file_exists("$program.started"), 'a hub is being started');
    $others = array_map(fn () => $site->nginx->begin('/broadcast.php'), range(1, 3));
    check(!file_exists($site->socket), 'there is no socket yet');
    $answers = array_map(fn ($request) => $site->nginx->finish($request)[1], [...$others, $first]);
    touch("$program.go");
    check(!in_array('accepted', $answers, true), 'somebody was told that a hub has it: ' . implode(' | ', $answers));
    eventually(fn () => $site->hubs() === [], 'it has failed');
    check(!file_exists($site->socket), 'no socket is left');
});

test('autospawn: a worker whose master was killed starts no hub', function () {
    $site = new Site(children: 2);
    $site->send('x');
    $site->fpm->stop(SIGKILL);
    $site->left();
    contains('has ended', $site->publish('x'));
    same([], $site->hubs());
    check(!file_exists($site->socket), 'no socket is left');
});

test('autospawn: php-fpm and its hub told to stop at once, under traffic: what was accepted is published, and the hub ends in good order', function () {
    $log = getenv('TEST_DIRECTORY') . '/both.log';
    $site = new Site(['realtime.log' => $log]);
    $site->send('first');
    $hub = $site->hub();
    // Beside the workers, which die without a word: who lives on knows what was accepted.
    $publishers = array_map(fn () => php(<<<'PHP'
        $accepted = 0;
        try {
            while (true) {
                broadcast('page', 'x');
                if (++$accepted === 100) {
                    echo "publishing\n";
                }
            }
        } catch (Realtime\Exception\RealtimeException $e) {
            echo "accepted $accepted\n";
        }
        PHP, ['-d', 'realtime.on_error=throw'], ['REALTIME_SOCKET' => $site->socket]), range(1, 2));
    array_map(fn ($publisher) => $publisher->expect('~^publishing$~m'), $publishers);
    posix_kill($hub['pid'], SIGTERM);
    $site->fpm->stop(SIGTERM);
    $accepted = array_sum(array_map(fn ($publisher) => (int) $publisher->expect('~^accepted (\d+)$~m')[1], $publishers));
    $site->left();
    $said = eventually(fn () => preg_match('~published=(\d+).*complete=(\w+).* stopped|stopped.*published=(\d+).*complete=(\w+)~', $text = (string) file_get_contents($log), $match) ? array_values(array_filter($match, 'strlen')) : null, 'the hub says what it has published');
    same(['true', 1 + $accepted], [$said[2], (int) $said[1]]);
    check(!str_contains((string) file_get_contents($log), 'told to stop twice'), 'it was told once');
});

test('autospawn: a setting that the hub does not take is named', function () {
    $file = getenv('TEST_DIRECTORY') . '/bad.toml';
    file_put_contents($file, "[limits]\noutbox_bytes = 5\n");
    contains('limits.publication_bytes', (new Site(['realtime.config' => $file]))->publish('x'));
    contains('realtime.binary is /nowhere/realtime', (new Site(['realtime.binary' => '/nowhere/realtime']))->publish('x'));
    contains('linger_ms', (new Site(['realtime.linger_ms' => 'long']))->publish('x'));
    file_put_contents($script = getenv('TEST_DIRECTORY') . '/not-a-program', "\x7fELF nonsense");
    chmod($script, 0755);
    contains('not a program for this machine', (new Site(['realtime.binary' => $script]))->publish('x'));
});

test('autospawn: the program is realtime.binary, else beside the extension, else in the PATH', function () {
    $directory = getenv('TEST_DIRECTORY') . '/bin';
    mkdir($directory);
    foreach (['realtime', 'elsewhere'] as $name) {
        copy(Site::program(), "$directory/$name");
        chmod("$directory/$name", 0755);
    }
    $program = fn (array $settings = []): string => readlink('/proc/' . (function () use ($settings, &$site) {
        $site = new Site($settings);
        $site->send('x');
        return $site->hub()['pid'];
    })() . '/exe');
    same(realpath(Site::program()), $program());
    same(realpath("$directory/elsewhere"), $program(['realtime.binary' => "$directory/elsewhere"]));
    // An extension that has nothing beside it.
    mkdir("$directory/alone");
    copy((string) getenv('TEST_EXTENSION'), "$directory/alone/realtime.so");
    [$options, $path] = [getenv('TEST_PHP_OPTIONS'), getenv('PATH')];
    putenv('TEST_PHP_OPTIONS=' . str_replace(json_encode('extension=' . getenv('TEST_EXTENSION')), json_encode("extension=$directory/alone/realtime.so"), $options));
    putenv("PATH=relative:$directory:$path");
    same(realpath("$directory/realtime"), $program());
    putenv('PATH=/nowhere');
    contains("there is no $directory/alone/realtime, and no program realtime in /nowhere; set realtime.binary", (new Site())->publish('x'));
    putenv("TEST_PHP_OPTIONS=$options");
    putenv("PATH=$path");
});

test('autospawn: without it, from the command line, and for php-fpm -t nothing is started', function () {
    contains('there is none at', (new Site(['realtime.autospawn' => '0']))->publish('x'));
    $socket = socket_path();
    $options = ['-d', 'realtime.autospawn=1', '-d', "realtime.socket=$socket"];
    putenv("REALTIME_SOCKET=$socket");
    contains('there is none at', php("try { Realtime\\publish('a', 'x'); } catch (Realtime\\Exception\\Unavailable \$e) { echo \$e->getMessage(); }", $options)->output());
    putenv('REALTIME_SOCKET');
    $process = Fpm::checkConfiguration($options);
    contains('test is successful', $process->errors() . $process->written());
    foreach (['-v', '-i'] as $option) {
        (new Process([PHP_BINARY, ...Tests\php_options(), ...$options, $option]))->output();
    }
    same([], [...glob("$socket*"), ...processes("--socket $socket")]);
});

test('autospawn: a forked child uses the hub on its own and ends, and its parent goes on', function () {
    $site = new Site();
    $site->send('x');
    $client = Client::subscribed($site->hub()['listen'], 'page');
    same('fine', php(<<<'PHP'
        Realtime\publish('page', 'before');
        for ($i = 0; $i < 20; $i++) {
            $child = pcntl_fork();
            if ($child === 0) {
                Realtime\publish('page', "child $i");
                exit(7);
            }
            pcntl_waitpid($child, $status);
            same([true, 7], [pcntl_wifexited($status), pcntl_wexitstatus($status)]);
        }
        Realtime\publish('page', 'after');
        echo 'fine';
        PHP, environment: ['REALTIME_SOCKET' => $site->socket])->output());
    foreach (['before', ...array_map(fn ($i) => "child $i", range(0, 19)), 'after'] as $expected) {
        same($expected, $client->next()['data']);
    }
});

// A thread-safe PHP with execution timers counts the time on the clock, whatever anybody computes.
PHP_ZTS || test('autospawn: what the hub computes does not count against a script\'s max_execution_time', function () use ($cpu) {
    $site = new Site(children: 3);
    $site->send('x');
    $hub = $site->hub()['pid'];
    $site->nginx->script('wait.php', <<<'PHP'
        set_time_limit(1);
        $cpu = function (): float {
            $fields = explode(' ', substr(strrchr(file_get_contents("/proc/{$_GET['hub']}/stat"), ')'), 2));
            return ($fields[11] + $fields[12]) / 100;
        };
        $before = $cpu();
        $wall = microtime(true);
        while ($cpu() < $before + 1.3 && microtime(true) < $wall + 25) {
            broadcast('busy', 'x');
            usleep(20_000);
        }
        $used = getrusage();
        echo json_encode([$cpu() - $before, $used['ru_utime.tv_sec'] + $used['ru_utime.tv_usec'] / 1e6]);
        PHP);
    // A flood from elsewhere keeps the hub busy.
    $flood = php("\$end = microtime(true) + 60; while (microtime(true) < \$end) { Realtime\\batch(function () { for (\$i = 0; \$i < 500; \$i++) { broadcast('busy', 'x'); } }); }", environment: ['REALTIME_SOCKET' => $site->socket, 'REALTIME_ON_ERROR' => 'log']);
    // On a busy machine the hub would take long to compute as much as this needs; root can give the two precedence.
    $threads = posix_geteuid() === 0 ? [...glob("/proc/$hub/task/*"), "/proc/{$flood->pid()}"] : [];
    array_map(fn ($thread) => pcntl_setpriority(-15, (int) basename($thread)), $threads);
    [$status, $answer] = $site->nginx->get("/wait.php?hub=$hub");
    $flood->signal(SIGKILL);
    same(200, $status, $answer);
    [$busy, $own] = json_decode($answer, true, flags: JSON_THROW_ON_ERROR);
    check($busy >= 1.3, "the hub used only $busy s");
    note(sprintf('with max_execution_time=1 the script ran on while the hub used %.2f s of CPU; its own process %.2f s in all', $busy, $own));
});

test('autospawn: realtime.log has what the hub says', function () {
    $log = getenv('TEST_DIRECTORY') . '/hub.log';
    $site = new Site(['realtime.log' => $log]);
    $site->send('x');
    $hub = $site->hub();
    $refused = stream_socket_client("tcp://{$hub['listen']}");
    fwrite($refused, "GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n");
    stream_get_line($refused, 4096, "\r\n\r\n");
    eventually(fn () => str_contains((string) file_get_contents($log), 'nothing is served on this path'), 'the refusal is logged');
    contains('listens on ws://' . $hub['listen'], file_get_contents($log));
    contains('following pid=' . $site->fpm->pid(), file_get_contents($log));
});

test('autospawn: realtime doctor asks php-fpm which hub its workers reach, and why', function () {
    $site = new Site();
    $site->send('x');
    $wrapper = getenv('TEST_DIRECTORY') . '/php-fpm';
    $doctor = function (array $options) use ($wrapper, $site): string {
        $command = implode(' ', array_map(escapeshellarg(...), [Fpm::binary(), ...Tests\php_options(), ...$options]));
        file_put_contents($wrapper, "#!/bin/sh\nexec $command \"\$@\"\n");
        chmod($wrapper, 0755);
        $process = new Process([Site::program(), 'doctor', '--config', '/dev/null', '--php', $wrapper, '--socket', $site->socket, '--listen', $site->hub()['listen']]);
        $process->wait();
        return preg_match('/^.* php  .*$/m', $process->written(), $match) ? $match[0] : $process->written();
    };
    $line = $doctor(['-d', "realtime.socket=$site->socket", '-d', 'realtime.autospawn=1']);
    check(str_starts_with($line, 'ok '), $line);
    contains(PHP_VERSION . ' (FPM/FastCGI), extension ' . phpversion('realtime'), $line);
    contains('client of another process\' hub: realtime.mode is auto, and fpm-fcgi spreads requests over processes', $line);
    contains('it cannot start a hub: realtime.binary is /nowhere/x', $doctor(['-d', 'realtime.autospawn=1', '-d', 'realtime.binary=/nowhere/x']));
    contains('realtime.socket=/elsewhere.sock; fix: ', $doctor(['-d', 'realtime.socket=/elsewhere.sock']));
    contains('realtime.mode is off; fix: broadcast() sends nothing', $doctor(['-d', 'realtime.mode=off']));
});
