<?php

/** artisan of the test application: `php artisan.php FOLDER ARGUMENTS…`. */

declare(strict_types=1);

$folder = $argv[1];
putenv("APP_BASE_PATH=$folder");
$app = require "$folder/bootstrap/app.php";
array_splice($_SERVER['argv'], 1, 1);
$kernel = $app->make(Illuminate\Contracts\Console\Kernel::class);
$status = $kernel->handle(new Symfony\Component\Console\Input\ArgvInput($_SERVER['argv']), new Symfony\Component\Console\Output\ConsoleOutput());
exit($status);
