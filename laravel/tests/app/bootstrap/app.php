<?php

/**
 * A small application in the shape that Laravel 8 to 13 all accept. `APP_BASE_PATH` is the copy of
 * this folder that a test runs on.
 */

declare(strict_types=1);

require_once __DIR__ . '/autoload.php';

$app = new Illuminate\Foundation\Application(getenv('APP_BASE_PATH') ?: dirname(__DIR__));
$app->singleton(Illuminate\Contracts\Http\Kernel::class, App\Http\Kernel::class);
$app->singleton(Illuminate\Contracts\Console\Kernel::class, App\Console\Kernel::class);
$app->singleton(Illuminate\Contracts\Debug\ExceptionHandler::class, App\Exceptions\Handler::class);
// Debian keeps the framework's own configuration where the framework does not look for it.
if (method_exists($app, 'dontMergeFrameworkConfiguration')) {
    $app->dontMergeFrameworkConfiguration();
}

return $app;
