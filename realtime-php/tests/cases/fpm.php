<?php

declare(strict_types=1);

require __DIR__ . '/../support/harness.php';
require __DIR__ . '/../support/fpm.php';
require __DIR__ . '/../support/laravel_expectations.php';

use Tests\Fpm;

use function Tests\{check, contains, laravel_tests, same, test};

/** Runs code in a worker, as a file that opcache has not seen. */
function run(Fpm $fpm, string $code): string
{
    $script = tempnam(sys_get_temp_dir(), 'realtime');
    file_put_contents($script, "<?php\n$code");
    try {
        return $fpm->request($script);
    } finally {
        unlink($script);
    }
}

$fpm = new Fpm(['-d', 'log_errors=1'], pool: 'security.limit_extensions =');

$cached = dirname(__DIR__) . '/support/laravel_fpm.php';
$answer = json_decode($fpm->request($cached), true);
for ($i = 0; $i < 5; $i++) {
    $answer = json_decode($fpm->request($cached), true);
}

test('php-fpm: the scripts come from opcache', function () use ($answer) {
    same(['fpm-fcgi', true], [$answer['sapi'] ?? null, $answer['cached'] ?? null]);
});

laravel_tests('php-fpm', fn () => $answer['results']);

test('php-fpm: without a hub broadcast() logs through FPM and the request goes on; publish() throws', function () use ($fpm) {
    $output = run($fpm, <<<'PHP'
        set_error_handler(fn ($level, $message) => throw new ErrorException($message));
        broadcast('a', 'x');
        try { Realtime\publish('a', 'x'); } catch (Realtime\Exception\Unavailable $e) { echo 'Unavailable'; }
        PHP);
    same('Unavailable', $output);
    $fpm->logged('realtime: broadcast() failed: no hub runs in this process');
});

test('php-fpm: serve() is refused', function () use ($fpm) {
    same('ConfigError', run($fpm, "try { Realtime\\serve(['listen' => '127.0.0.1:0']); } catch (Realtime\\Exception\\ConfigError \$e) { echo 'ConfigError'; }"));
});

test('php-fpm: start() is refused, unless the pool says that it is meant', function () use ($fpm) {
    $start = "try { Realtime\\start(['listen' => '127.0.0.1:0', 'socket' => '']); broadcast('a', 'x'); echo 'started'; } catch (Realtime\\Exception\\ConfigError \$e) { echo \$e->getMessage(); }";
    contains('under fpm-fcgi requests are spread over processes', run($fpm, $start));
    $embedded = new Fpm(['-d', 'realtime.mode=embedded'], children: 1, pool: 'security.limit_extensions =');
    same(['started', 'started'], [run($embedded, $start), run($embedded, $start)]);
});

test('php-fpm: off() and fake() end with their request', function () {
    $fpm = new Fpm(['-d', 'realtime.on_error=throw'], children: 1, pool: 'security.limit_extensions =');
    $run = fn (string $code) => run($fpm, $code);
    $probe = "try { broadcast('a', 'x'); echo 'dropped'; } catch (Realtime\\Exception\\Unavailable) { echo 'tried'; }";
    same('tried', $run($probe));
    same('dropped', $run("Realtime\\off(); $probe"));
    same('tried', $run($probe));
    same('dropped', $run("\$kept = Realtime\\Testing\\fake(); $probe"));
    same('tried', $run($probe));
    same('dropped', $run("Realtime\\Testing\\fake(); register_shutdown_function(function () { $probe });"));
    same('tried', $run($probe));
});

test('php-fpm: a pool\'s php_admin_value and the master\'s environment are seen by workers', function () {
    putenv('REALTIME_ON_ERROR=throw');
    $socket = getenv('REALTIME_SOCKET');
    putenv('REALTIME_SOCKET');
    $fpm = new Fpm(pool: "security.limit_extensions =\nclear_env = yes\nphp_admin_value[realtime.socket] = /nowhere/hub.sock");
    putenv('REALTIME_ON_ERROR');
    putenv("REALTIME_SOCKET=$socket");
    contains('there is none at /nowhere/hub.sock', run($fpm, "try { broadcast('a', 'x'); echo 'logged'; } catch (Realtime\\Exception\\Unavailable \$e) { echo \$e->getMessage(); }"));
});

test('php-fpm: -t and the start leave no thread, no port and no hub', function () {
    $process = Fpm::checkConfiguration(['-d', 'realtime.listen=127.0.0.1:0']);
    contains('test is successful', $process->errors() . $process->written());
    check(!str_contains($process->errors() . $process->written(), 'listening on'), 'no hub');
});

unset($fpm);
